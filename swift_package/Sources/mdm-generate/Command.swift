import DiffusionBench
import Dispatch
import Foundation
import MatryoshkaDiffusion

/// `mdm-generate`: makes pictures and clips from a bundle on the command line.
@main
struct Command {
  static func main() async {
    let words = Array(CommandLine.arguments.dropFirst())
    if words.isEmpty || words.contains("--help") || words.contains("-h") {
      print(CommandLineOptions.usage)
      exit(words.isEmpty ? 2 : 0)
    }
    let work = Task { try await run(words) }
    // An interrupted run releases its resources before it ends.
    // The closure is Sendable because it runs on a system queue, not on the main actor.
    let cancel: @Sendable () -> Void = { work.cancel() }
    let signals = [SIGINT, SIGTERM].map { number in
      signal(number, SIG_IGN)
      let source = DispatchSource.makeSignalSource(signal: number)
      source.setEventHandler(handler: cancel)
      source.resume()
      return source
    }
    let code = await exitCode(of: work)
    for source in signals { source.cancel() }
    exit(code)
  }

  private static func exitCode(of work: Task<Void, any Error>) async -> Int32 {
    do {
      try await work.value
      return 0
    } catch is CancellationError {
      Output.say("mdm-generate: cancelled")
      return 130
    } catch {
      let sentence = (error as? MatryoshkaError)?.errorDescription ?? "\(error)"
      let line = sentence.unicodeScalars.map { $0.value < 0x20 ? " " : String($0) }.joined()
      Output.say("mdm-generate: \(line)")
      return 1
    }
  }

  private static func run(_ words: [String]) async throws {
    let known = ["generate", "bench", "licenses", "check", "compile", "devices"]
    let name = words.first.flatMap { known.contains($0) ? $0 : nil }
    var options = try CommandLineOptions(name == nil ? words : Array(words.dropFirst()))
    let bundle = try BundleFolder(url: URL(filePath: options.bundle))
    options.request.stopAt = try options.stopAt?.stopAt(in: bundle.manifest)
    if name == "licenses" {
      return try Output.put(options.isJSON ? bundle.licenses : nil, bundle.licenses.joined(separator: "\n"))
    }
    let choice = options.runtime ?? .ofThisSystem(for: bundle.manifest.format)
    if name == "check" {
      return try await CheckCommand(options: options, bundle: bundle, choice: choice).run()
    }
    if name == "compile" { return try await CoreMLCommands(options: options, bundle: bundle).compile() }
    if name == "devices" { return try await CoreMLCommands(options: options, bundle: bundle).devices() }
    var settings = Pipeline.Options()
    settings.memory = options.memory
    if let path = options.features, let text = bundle.manifest.text {
      settings.features = try EmbeddingCache(
        url: URL(filePath: path), text: text, encoderSHA256: bundle.encoderSHA256())
    }
    let runtime = try choice.runtime(options, bundle)
    if name == "bench" {
      let timed = TimedRuntime(runtime)
      let pipeline = Pipeline(bundle: bundle, runtime: timed, options: settings)
      return try await BenchCommand(
        options: options, choice: choice, pipeline: pipeline, runtime: timed
      ).run()
    }
    let pipeline = Pipeline(bundle: bundle, runtime: runtime, options: settings)
    try await Generate(options: options, choice: choice, pipeline: pipeline).run()
  }
}

import Foundation
import MatryoshkaDiffusion

/// `mdm-generate bench BUNDLE ...`: seconds to load, per package and per step, cold and warm.
struct BenchCommand {
  let options: CommandLineOptions
  let pipeline: Pipeline
  let runtime: TimedRuntime

  /// A first load is called cold where it takes this many times the second.
  private static let cold = 1.5

  func run() async throws {
    var pictures: [Double] = []
    var steps: [Double] = []
    let (before, started) = (BenchRecord.Conditions.now, Date())
    let clock = ContinuousClock()
    let beginning = clock.now
    for round in 0...options.repetitions {
      if round == 1 {  // what is loaded again now is warm
        await pipeline.release()
        await runtime.forgetRuns()
        try await pipeline.prepare()
      }
      let start = clock.now
      for try await step in pipeline.generate(options.request) {
        if round > 0 { steps.append(step.seconds) }
      }
      pictures.append((clock.now - start).inSeconds)
    }
    await pipeline.release()
    let (manifest, after) = (pipeline.bundle.manifest, BenchRecord.Conditions.now)
    let count = steps.count / options.repetitions
    let isGuided = manifest.guidance == .cfg && options.request.sampler.guidanceScale != 1
    let record = BenchRecord(
      engine: options.runtime == .pipe ? "executor" : "coreml",
      id: "\(manifest.digest.prefix(12)).\(units).swift.steps-\(count).n\(options.repetitions)",
      bundle: URL(filePath: options.bundle).lastPathComponent, digest: manifest.digest,
      layout: manifest.layout.rawValue, variant: manifest.variant,
      bytes: Dictionary(manifest.packages.map { ($0.path, $0.bytes) }) { $1 }.values.reduce(0, +),
      units: units, steps: [count], evaluations: isGuided ? 2 : 1,
      repetitions: options.repetitions, precision: options.precision,
      started: started.ISO8601Format(), seconds: (clock.now - beginning).inSeconds,
      before: before, after: after, violations: BenchRecord.violations(before, after),
      loads: await loads(),
      latencies: [.init(what: "step", seconds: steps)] + packages(await runtime.runs),
      pictures: [
        .init(steps: count, evaluations: isGuided ? 2 : 1, seconds: Array(pictures[1...]))
      ],
      peakBytes: peakFootprint())
    try Output.put(
      options.isJSON ? record : nil, keys: .convertToSnakeCase,
      "first picture \(pictures[0]) s, step median \(quantile(steps, 50)) s, p95 \(quantile(steps, 95)) s")
  }

  private var units: String {
    options.runtime == .pipe ? "executor" : options.computeUnits?.rawValue ?? "as the bundle says"
  }

  private func packages(_ runs: [String: [Double]]) -> [BenchRecord.Latency] {
    pipeline.bundle.manifest.packages.compactMap { package in
      runs[package.name].map { .init(what: "package \(package.name)", seconds: $0) }
    }
  }

  private func loads() async -> [BenchRecord.Load] {
    let found = await runtime.loads
    return pipeline.bundle.manifest.packages.compactMap { package in
      guard let each = found[package.name], let first = each.first else { return nil }
      let second = each.count > 1 ? each[1] : nil
      let isCold = second.map { first > Self.cold * $0 } ?? false
      return .init(package: package.name, firstS: first, secondS: second, cold: isCold)
    }
  }

  /// The value below which so many per cent lie, or the largest; there is at least one.
  private func quantile(_ values: [Double], _ percent: Int) -> Double {
    let sorted = values.sorted()
    return sorted[min(sorted.count - 1, sorted.count * percent / 100)]
  }

  /// The most memory that this process had; nil where it cannot be told.
  private func peakFootprint() -> Int? {
    #if os(Linux)
      guard let text = try? String(contentsOfFile: "/proc/self/status", encoding: .utf8),
        let line = text.split(separator: "\n").first(where: { $0.hasPrefix("VmHWM:") })
      else { return nil }
      return line.split(separator: " ").compactMap { Int($0) }.first.map { $0 << 10 }
    #else
      var usage = rusage()
      return getrusage(RUSAGE_SELF, &usage) == 0 ? Int(usage.ru_maxrss) : nil
    #endif
  }
}

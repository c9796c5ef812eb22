import DiffusionCoreAI
import DiffusionCoreML
import MatryoshkaDiffusion
import SwiftUI

/// Opens one of the app's bundles, prepares its packages once, then shows the studio or the benchmark. The
/// manifest says which framework runs a bundle.
struct StartView: View {
  /// Each variant of a model is its own bundle, such as emoji.bundle and emoji-4bit.bundle.
  /// Resources of Swift packages end in .bundle as well, but hold no manifest.json.
  private let bundles = (Bundle.main.urls(forResourcesWithExtension: "bundle", subdirectory: nil) ?? [])
    .filter { FileManager.default.fileExists(atPath: $0.appending(path: "manifest.json").path) }
  @State private var chosen: URL?
  @State private var units = Manifest.ComputeUnits.cpuAndNeuralEngine
  @State private var progress = ""
  @State private var opened: Opened?
  @State private var isMeasuring = false
  @State private var failure: String?
  @State private var remark: String?

  var body: some View {
    if let opened, isMeasuring {
      if let remark { Text(remark).font(.footnote) }
      BenchmarkView(bundle: opened.bundle, runtime: opened.runtime, units: units)
    } else if let opened {
      if let remark { Text(remark).font(.footnote) }
      StudioView(
        bundle: opened.bundle, generation: opened.generation,
        sampler: SamplerSettings(proposedBy: opened.bundle.manifest))
    } else {
      VStack(spacing: 16) {
        Picker("Variant", selection: $chosen) {
          ForEach(bundles, id: \.self) { Text($0.lastPathComponent).tag(URL?.some($0)) }
        }
        Picker("Runs on", selection: $units) {
          ForEach(Manifest.ComputeUnits.allCases, id: \.self) { Text($0.rawValue).tag($0) }
        }
        Button("Open") { Task { await open() } }
        Button("Benchmark") {
          isMeasuring = true
          Task { await open() }
        }
        Text(failure ?? progress)
      }
      .padding()
    }
  }

  private struct Opened {
    let bundle: BundleFolder
    let runtime: any PackageRuntime
    let generation: Generation
  }

  private func open() async {
    do {
      guard let url = chosen ?? bundles.first else {
        failure = "Add emoji.bundle to the app as a folder reference."
        return
      }
      let bundle = try BundleFolder(url: url)
      progress = "preparing (only once)"
      let runtime =
        switch bundle.manifest.format {
        case .coreml: try await coreMLRuntime(bundle)
        case .coreai: try await coreAIRuntime(bundle)
        }
      let generation = Generation(pipeline: Pipeline(bundle: bundle, runtime: runtime))
      opened = Opened(bundle: bundle, runtime: runtime, generation: generation)
    } catch {
      failure = error.localizedDescription
    }
  }

  private func coreMLRuntime(_ bundle: BundleFolder) async throws -> any PackageRuntime {
    let base = URL.applicationSupportDirectory.appending(path: "compiled")
    let models = CompiledModels(bundle: bundle, base: base)
    try await models.prepare()
    return CoreMLRuntime(models: models, computeUnits: units)
  }

  private func coreAIRuntime(_ bundle: BundleFolder) async throws -> any PackageRuntime {
    // Xcode 26 has no such framework, and the module is empty there.
    #if canImport(CoreAI)
      if #available(macOS 27, iOS 27, *) {
        let runtime = try CoreAIRuntime(bundle: bundle, computeUnits: units)
        try await runtime.prepare()
        // Once per device, system and bundle would do.
        let found = try await runtime.selfTest()
        // The benchmark names the units that ran, which may be others than those asked for.
        units = found.attempts.last?.units ?? units
        let said = await [found.remark].compactMap { $0 } + runtime.remarks
        remark = said.isEmpty ? nil : said.joined(separator: " ")
        return runtime
      }
    #endif
    throw MatryoshkaError.invalidArgument(
      name: "bundle", reason: "needs iOS 27 or macOS 27; add a Core ML bundle of the model as well")
  }
}

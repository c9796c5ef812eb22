import DiffusionCoreML
import MatryoshkaDiffusion
import SwiftUI

/// Opens one of the app's bundles and compiles its packages once; then shows the studio.
struct StartView: View {
  /// Variants of a model are bundles of their own, such as emoji.bundle and emoji-4bit.bundle.
  private let bundles = Bundle.main.urls(forResourcesWithExtension: "bundle", subdirectory: nil) ?? []
  @State private var chosen: URL?
  @State private var units = Manifest.ComputeUnits.cpuAndNeuralEngine
  @State private var progress = ""
  @State private var generation: Generation?
  @State private var failure: String?

  var body: some View {
    if let generation {
      StudioView(generation: generation)
    } else {
      VStack(spacing: 16) {
        Picker("Variant", selection: $chosen) {
          ForEach(bundles, id: \.self) { Text($0.lastPathComponent).tag(URL?.some($0)) }
        }
        Picker("Runs on", selection: $units) {
          ForEach(Manifest.ComputeUnits.allCases, id: \.self) { Text($0.rawValue).tag($0) }
        }
        Button("Open") { Task { await open() } }
        Text(failure ?? progress)
      }
      .padding()
    }
  }

  private func open() async {
    do {
      guard let url = chosen ?? bundles.first else {
        failure = "Add emoji.bundle to the app as a folder reference."
        return
      }
      let bundle = try BundleFolder(url: url)
      let base = URL.applicationSupportDirectory.appending(path: "compiled")
      let models = CompiledModels(bundle: bundle, base: base)
      progress = "compiling, once"
      try await models.prepare()
      let runtime = CoreMLRuntime(models: models, computeUnits: units)
      generation = Generation(pipeline: Pipeline(bundle: bundle, runtime: runtime))
    } catch {
      failure = error.localizedDescription
    }
  }
}

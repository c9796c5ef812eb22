import DiffusionCoreML
import MatryoshkaDiffusion
import SwiftUI

/// Opens the bundle of the app and compiles its packages once; then shows the studio.
struct StartView: View {
  @State private var units = Manifest.ComputeUnits.cpuAndNeuralEngine
  @State private var progress = ""
  @State private var generation: Generation?
  @State private var failure: String?

  var body: some View {
    if let generation {
      StudioView(generation: generation)
    } else {
      VStack(spacing: 16) {
        Picker("Runs on", selection: $units) {
          ForEach(Manifest.ComputeUnits.allCases, id: \.self) { Text($0.rawValue).tag($0) }
        }
        Button("Open emoji.bundle") { Task { await open() } }
        Text(failure ?? progress)
      }
      .padding()
    }
  }

  private func open() async {
    do {
      guard let url = Bundle.main.url(forResource: "emoji", withExtension: "bundle") else {
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

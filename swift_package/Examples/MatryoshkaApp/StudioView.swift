import MatryoshkaDiffusion
import SwiftUI

/// A prompt, the nested previews during the run, and the duration of each step.
struct StudioView: View {
  let bundle: BundleFolder
  let generation: Generation
  /// What the bundle proposes: a student takes nothing else.
  let sampler: SamplerSettings
  @State private var prompt = "red heart"
  @State private var seed: UInt32 = 7
  /// What the newest picture or clip is made from.
  @State private var asked: PictureRequest?
  @Environment(\.scenePhase) private var phase

  var body: some View {
    VStack(spacing: 16) {
      LevelsView(pictures: generation.pictures, clips: generation.clips).equatable()
      if generation.state == .finished, let clip = generation.clips.first, let asked {
        ShareClipView(clip: clip, recipe: Recipe(of: asked, bundle: bundle))
      }
      TextField("Prompt", text: $prompt)
      HStack {
        Button("Make") { make() }
        Button("Stop", role: .cancel) { generation.cancel() }
        Button("Resume") { generation.resume() }
      }
      Text(status)
      ForEach(generation.remarks, id: \.self) { Text($0).font(.footnote) }
    }
    .padding()
    .onChange(of: phase) { _, phase in
      if phase == .background { Task { await stop() } }
    }
  }

  private func make() {
    seed &+= 1
    let request = PictureRequest(prompt: prompt, seed: seed, sampler: sampler)
    asked = request
    if bundle.manifest.video == nil {
      generation.start(request)
    } else {
      generation.start(clip: request)
    }
  }

  /// The package at work still needs the GPU's answer, so the app asks for the time to wait for it.
  private func stop() async {
    await withBackgroundTime {
      await generation.interrupt()
      await generation.wait()
    }
  }

  private var status: String {
    switch generation.state {
    case .idle: ""
    case .running(let done, let total): "step \(done) of \(total), \(generation.thermalState.rawValue)"
    case .finished: "\(generation.stepSeconds.reduce(0, +)) s in \(generation.stepSeconds.count) steps"
    case .interrupted(let reason): reason
    case .failed(let sentence): sentence
    }
  }
}

import MatryoshkaDiffusion
import SwiftUI

/// A prompt, the nested previews during the run, and the duration of each step.
struct StudioView: View {
  let generation: Generation
  @State private var prompt = "red heart"
  @State private var seed: UInt32 = 7
  @Environment(\.scenePhase) private var phase

  var body: some View {
    VStack(spacing: 16) {
      HStack(alignment: .bottom) {
        ForEach(generation.pictures.indices, id: \.self) { level in
          if let image = generation.pictures[level].cgImage {
            Image(image, scale: 1, label: Text("\(generation.pictures[level].width) pixels"))
              .interpolation(.none)
          }
        }
      }
      .frame(minHeight: 256)
      TextField("Prompt", text: $prompt)
      HStack {
        Button("Make") { make() }
        Button("Stop", role: .cancel) { generation.cancel() }
        Button("Resume") { generation.resume() }
      }
      Text(status)
    }
    .padding()
    .onChange(of: phase) { _, phase in
      if phase == .background { Task { await generation.interrupt() } }
    }
  }

  private func make() {
    seed &+= 1
    let sampler = SamplerSettings(steps: 25, guidanceScale: 3)
    generation.start(PictureRequest(prompt: prompt, seed: seed, sampler: sampler))
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

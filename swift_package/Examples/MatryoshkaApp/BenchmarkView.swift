import DiffusionBench
import Foundation
import MatryoshkaDiffusion
import SwiftUI

/// Makes ten pictures in a row and shares the result as a line for `mdm doctor --psnr 0`.
struct BenchmarkView: View {
  let bundle: BundleFolder
  let runtime: any PackageRuntime
  let units: Manifest.ComputeUnits
  @State private var steps = 4
  @State private var isRunning = false
  @State private var line = ""
  @State private var failure: String?

  var body: some View {
    VStack(spacing: 16) {
      Stepper("\(steps) steps per picture", value: $steps, in: 1...50)
      Button("Measure") { Task { await measure() } }.disabled(isRunning)
      Text(failure ?? line).font(.footnote.monospaced()).textSelection(.enabled)
      if !line.isEmpty { ShareLink("Share the line", item: line) }
    }
    .padding()
  }

  private func measure() async {
    isRunning = true
    defer { isRunning = false }
    do {
      let timed = TimedRuntime(runtime)
      let setup = Benchmark.Setup(
        engine: "coreml", bundle: bundle.url.lastPathComponent, units: units.rawValue,
        precision: "fp16", repetitions: 10)
      let pipeline = Pipeline(bundle: bundle, runtime: timed)
      let benchmark = Benchmark(setup: setup, pipeline: pipeline, runtime: timed)
      let kind = bundle.manifest.student == nil ? SamplerKind.ddim : .student
      let sampler = SamplerSettings(kind: kind, steps: steps, guidanceScale: 1.5)
      line = try await benchmark.run(PictureRequest(prompt: "red heart", sampler: sampler)).line()
    } catch {
      failure = error.localizedDescription
    }
  }
}

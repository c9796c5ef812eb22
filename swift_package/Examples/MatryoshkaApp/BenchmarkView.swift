import DiffusionBench
import Foundation
import MatryoshkaDiffusion
import SwiftUI

/// Makes ten pictures in a row and shares the result as a line for `mdm doctor --psnr 0`.
struct BenchmarkView: View {
  let bundle: BundleFolder
  let runtime: any PackageRuntime
  let units: Manifest.ComputeUnits
  @State private var steps = 1
  @State private var isRunning = false
  @State private var line = ""
  @State private var failure: String?

  var body: some View {
    VStack(spacing: 16) {
      Picker("Steps per picture", selection: $steps) {
        ForEach(choices, id: \.self) { Text("\($0)").tag($0) }
      }
      Button("Measure") { Task { await measure() } }.disabled(isRunning)
      Text(failure ?? line).font(.footnote.monospaced()).textSelection(.enabled)
      if !line.isEmpty { ShareLink("Share the line", item: line) }
    }
    .padding()
  }

  /// A student takes only the numbers of steps that it learned.
  private var choices: [Int] { bundle.manifest.student?.steps ?? [1, 2, 4, 8, 25, 50] }

  private func measure() async {
    isRunning = true
    defer { isRunning = false }
    do {
      let timed = TimedRuntime(runtime)
      let setup = Benchmark.Setup(
        engine: bundle.manifest.format.rawValue, bundle: bundle.url.lastPathComponent, units: units.rawValue,
        precision: "fp16", repetitions: 10)
      let pipeline = Pipeline(bundle: bundle, runtime: timed)
      let benchmark = Benchmark(setup: setup, pipeline: pipeline, runtime: timed)
      var sampler = SamplerSettings(proposedBy: bundle.manifest)
      sampler.steps = steps
      line = try await benchmark.run(PictureRequest(prompt: "red heart", sampler: sampler)).line()
    } catch {
      failure = error.localizedDescription
    }
  }
}

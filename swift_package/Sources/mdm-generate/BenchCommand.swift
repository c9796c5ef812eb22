import Foundation
import MatryoshkaDiffusion

/// `mdm-generate bench BUNDLE ...`: seconds to prepare and per step, cold and warm.
struct BenchCommand {
  let options: CommandLineOptions
  let pipeline: Pipeline

  private struct Report: Encodable {
    let bundle: String
    let variant: String
    let system: String
    let memory: String
    let steps: Int
    let coldPictureSeconds: Double
    let warmPictureSeconds: [Double]
    let stepSeconds: [Double]
    let stepMedianSeconds: Double
    let step95Seconds: Double
    let thermalState: String
    let peakFootprintBytes: Int?
  }

  func run() async throws {
    var pictures: [Double] = []
    var steps: [Double] = []
    var thermal = ThermalState.unknown
    for round in 0...options.repetitions {
      let clock = ContinuousClock()
      let start = clock.now
      for try await step in pipeline.generate(options.request) {
        if round > 0 { steps.append(step.seconds) }
        thermal = step.thermalState
      }
      let taken = (clock.now - start).components
      pictures.append(Double(taken.seconds) + Double(taken.attoseconds) * 1e-18)
    }
    await pipeline.release()
    let sorted = steps.sorted()
    let report = Report(
      bundle: pipeline.bundle.manifest.digest, variant: pipeline.bundle.manifest.variant,
      system: ProcessInfo.processInfo.operatingSystemVersionString,
      memory: options.memory.rawValue, steps: steps.count / options.repetitions,
      coldPictureSeconds: pictures[0], warmPictureSeconds: Array(pictures[1...]),
      stepSeconds: steps, stepMedianSeconds: sorted[sorted.count / 2],
      step95Seconds: sorted[min(sorted.count - 1, sorted.count * 95 / 100)],
      thermalState: thermal.rawValue, peakFootprintBytes: peakFootprint())
    try Output.put(
      options.isJSON ? report : nil,
      "cold \(pictures[0]) s, step median \(report.stepMedianSeconds) s, p95 \(report.step95Seconds) s")
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

import Foundation
import MatryoshkaDiffusion

/// `mdm-generate bench BUNDLE ...`: seconds to load, per package and per step, cold and warm.
struct BenchCommand {
  let options: CommandLineOptions
  let pipeline: Pipeline
  let runtime: TimedRuntime

  private struct Report: Encodable {
    let bundle: String
    let variant: String
    let system: String
    let runtime: String
    let memory: String
    let steps: Int
    let coldPictureSeconds: Double
    let warmPictureSeconds: [Double]
    let stepSeconds: [Double]
    let stepMedianSeconds: Double
    let step95Seconds: Double
    let packages: [PackageReport]
    let thermalState: String
    let peakFootprintBytes: Int?
  }

  private struct PackageReport: Encodable {
    let name: String
    let coldLoadSeconds: Double
    let warmLoadSeconds: [Double]
    let runs: Int
    let medianSeconds: Double
    let p95Seconds: Double
  }

  func run() async throws {
    var pictures: [Double] = []
    var steps: [Double] = []
    var thermal = ThermalState.unknown
    for round in 0...options.repetitions {
      if round == 1 {  // what is loaded again now is warm
        await pipeline.release()
        await runtime.forgetRuns()
        try await pipeline.prepare()
      }
      let clock = ContinuousClock()
      let start = clock.now
      for try await step in pipeline.generate(options.request) {
        if round > 0 { steps.append(step.seconds) }
        thermal = step.thermalState
      }
      pictures.append((clock.now - start).inSeconds)
    }
    await pipeline.release()
    let report = Report(
      bundle: pipeline.bundle.manifest.digest, variant: pipeline.bundle.manifest.variant,
      system: ProcessInfo.processInfo.operatingSystemVersionString,
      runtime: options.runtime.rawValue, memory: options.memory.rawValue,
      steps: steps.count / options.repetitions, coldPictureSeconds: pictures[0],
      warmPictureSeconds: Array(pictures[1...]), stepSeconds: steps,
      stepMedianSeconds: quantile(steps, 50), step95Seconds: quantile(steps, 95),
      packages: await packages(), thermalState: thermal.rawValue,
      peakFootprintBytes: peakFootprint())
    try Output.put(
      options.isJSON ? report : nil,
      "cold \(pictures[0]) s, step median \(report.stepMedianSeconds) s, p95 \(report.step95Seconds) s")
  }

  private func packages() async -> [PackageReport] {
    let (loads, runs) = (await runtime.loads, await runtime.runs)
    return pipeline.bundle.manifest.packages.compactMap { package in
      guard let load = loads[package.name], let run = runs[package.name] else { return nil }
      return PackageReport(
        name: package.name, coldLoadSeconds: load[0], warmLoadSeconds: Array(load.dropFirst()),
        runs: run.count, medianSeconds: quantile(run, 50), p95Seconds: quantile(run, 95))
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

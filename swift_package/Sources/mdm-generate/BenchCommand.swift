import DiffusionBench
import Foundation
import MatryoshkaDiffusion

/// `mdm-generate bench BUNDLE ...`: prints a line for `mdm doctor`, or a summary.
struct BenchCommand {
  let options: CommandLineOptions
  let choice: RuntimeChoice
  let pipeline: Pipeline
  let runtime: TimedRuntime

  /// The number of values needed for a 95th percentile.
  private static let many = 20

  func run() async throws {
    let engine = choice.engine(for: pipeline.bundle.manifest.format)
    let units = choice == .pipe ? engine : options.computeUnits?.rawValue ?? "as the bundle says"
    let setup = Benchmark.Setup(
      engine: engine, bundle: URL(filePath: options.bundle).lastPathComponent, units: units, precision: options.precision, repetitions: options.repetitions)
    let benchmark = Benchmark(setup: setup, pipeline: pipeline, runtime: runtime)
    let record = try await benchmark.run(options.request)
    try Output.put(nil, options.isJSON ? record.line() : gist(of: record))
  }

  private func gist(of record: BenchRecord) -> String {
    let (steps, pictures) = (record.latencies[0].seconds, record.pictures[0].seconds)
    let tail = steps.count < Self.many ? "" : ", p95 \(quantile(steps, 95)) s"
    return "picture median \(quantile(pictures, 50)) s, step median \(quantile(steps, 50)) s\(tail)"
  }

  /// The value below which `percent` per cent of the values lie, or the largest value; `values` must
  /// not be empty.
  private func quantile(_ values: [Double], _ percent: Int) -> Double {
    let sorted = values.sorted()
    return sorted[min(sorted.count - 1, sorted.count * percent / 100)]
  }
}

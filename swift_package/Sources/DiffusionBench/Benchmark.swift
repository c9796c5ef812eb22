import DiffusionCore
import Foundation
import MatryoshkaDiffusion

/// Times loads, packages, steps and whole pictures of one request, repeatedly.
public struct Benchmark: Sendable {
  /// How the pictures are made, as stated in the record.
  public struct Setup: Sendable {
    let engine: String
    let bundle: String
    let units: String
    let precision: String
    let repetitions: Int

    /// - Parameters:
    ///   - engine: `coreml`, `coreai`, or what computes behind the pipe: `executor` or `interpreter`.
    ///   - bundle: The name of the bundle's folder.
    ///   - units: The compute units that packages were loaded for.
    ///   - precision: The precision of the run: `fp16` or `fp32`.
    ///   - repetitions: The number of timed pictures. One more picture warms up.
    public init(
      engine: String, bundle: String, units: String, precision: String, repetitions: Int
    ) {
      (self.engine, self.bundle, self.units) = (engine, bundle, units)
      (self.precision, self.repetitions) = (precision, max(1, repetitions))
    }
  }

  private let setup: Setup
  private let pipeline: Pipeline
  private let runtime: TimedRuntime

  /// A first load is called cold if it takes this many times as long as the second.
  private static let cold = 1.5

  /// Creates a benchmark. `runtime` must be the runtime of `pipeline`.
  public init(setup: Setup, pipeline: Pipeline, runtime: TimedRuntime) {
    (self.setup, self.pipeline, self.runtime) = (setup, pipeline, runtime)
  }

  /// Makes the picture once to warm up, then repeats it as set up. Rethrows errors of the pipeline.
  public func run(_ request: PictureRequest) async throws -> BenchRecord {
    var pictures: [Double] = []
    var steps: [Double] = []
    let (before, started) = (BenchRecord.Conditions.now, Date())
    let clock = ContinuousClock()
    let beginning = clock.now
    for round in 0...setup.repetitions {
      if round == 1 {  // from here on, loads are warm
        await pipeline.release()
        await runtime.forgetRuns()
        try await pipeline.prepare()
      }
      pipeline.forgetTexts()  // a picture is measured from its prompt on
      let start = clock.now
      for try await step in pipeline.make(request) {
        if round > 0 { steps.append(step.seconds) }
      }
      pictures.append((clock.now - start).inSeconds)
    }
    await pipeline.release()
    let (manifest, after) = (pipeline.bundle.manifest, BenchRecord.Conditions.now)
    let count = steps.count / setup.repetitions
    let evaluations = manifest.guidance == .cfg && request.sampler.guidanceScale != 1 ? 2 : 1
    let id =
      "\(manifest.digest.prefix(12)).\(setup.units).swift.steps-\(count).n\(setup.repetitions)"
    return BenchRecord(
      engine: setup.engine, id: id, bundle: setup.bundle, digest: manifest.digest,
      layout: manifest.layout.rawValue, variant: manifest.variant,
      bytes: Dictionary(manifest.packages.map { ($0.path, $0.bytes) }) { $1 }.values.reduce(0, +),
      units: setup.units, steps: [count], evaluations: evaluations,
      repetitions: setup.repetitions, precision: setup.precision,
      started: started.ISO8601Format(), seconds: (clock.now - beginning).inSeconds,
      before: before, after: after, violations: BenchRecord.violations(before, after),
      loads: await loads(),
      latencies: [.init(what: "step", seconds: steps)] + packages(await runtime.runs),
      pictures: [
        .init(steps: count, evaluations: evaluations, seconds: Array(pictures[1...]))
      ],
      peakBytes: peakFootprint())
  }

  private func packages(_ runs: [String: [Double]]) -> [BenchRecord.Latency] {
    pipeline.bundle.manifest.packages.compactMap { package in
      runs[package.name].map { .init(what: "package \(package.name)", seconds: $0) }
    }
  }

  private func loads() async -> [BenchRecord.Load] {
    let found = await runtime.loads
    return pipeline.bundle.manifest.packages.compactMap { package in
      guard let each = found[package.name], let first = each.first else { return nil }
      let second = each.count > 1 ? each[1] : nil
      let isCold = second.map { first > Self.cold * $0 } ?? false
      return .init(package: package.name, firstS: first, secondS: second, cold: isCold)
    }
  }
}

/// The peak memory of this process, in bytes; nil if unknown.
private func peakFootprint() -> Int? {
  #if os(Linux)
    guard let text = try? String(contentsOfFile: "/proc/self/status", encoding: .utf8),
      let line = text.split(separator: "\n").first(where: { $0.hasPrefix("VmHWM:") })
    else { return nil }
    return line.split(separator: " ").compactMap { Int($0) }.first.map { $0 << 10 }
  #elseif canImport(Darwin) && compiler(>=6.1)
    // Before the SDK of Xcode 16.3, which came with Swift 6.1, `mach_task_self_` is a mutable global that
    // Swift 6 refuses.
    var info = task_vm_info_data_t()
    let words = MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<integer_t>.size
    var count = mach_msg_type_number_t(words)
    let status = withUnsafeMutablePointer(to: &info) { pointer in
      pointer.withMemoryRebound(to: integer_t.self, capacity: words) {
        task_info(mach_task_self_, task_flavor_t(TASK_VM_INFO), $0, &count)
      }
    }
    return status == KERN_SUCCESS ? Int(info.ledger_phys_footprint_peak) : nil
  #else
    return nil
  #endif
}

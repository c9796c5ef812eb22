import DiffusionBench
import DiffusionCore
import Synchronization
import TestBundle
import Testing

import MatryoshkaDiffusion

@Suite struct TimedRuntimeTests {
  @Test func aLoadThatFailedIsTriedAgain() async throws {
    let small = try SmallBundle()
    let package = small.bundle.manifest.packages[0]
    let count = Mutex(0)
    let inner = ArithmeticRuntime(
      bundleDigest: "x",
      beforeLoad: {
        let first = count.withLock { count in
          count += 1
          return count == 1
        }
        if first { throw MatryoshkaError.packageFailed(package: "down_8", reason: "test") }
      })
    let timed = TimedRuntime(inner)
    #expect(timed.bundleDigest == "x")
    await #expect(throws: MatryoshkaError.self) { try await timed.load(package) }
    try await timed.load(package)
    #expect(await inner.loaded == [package.name])
  }

  /// Though a pipeline encodes a text once for all seeds.
  @Test func everyPictureIsMeasuredFromItsPromptOn() async throws {
    let small = try SmallBundle(.text)
    let timed = TimedRuntime(ArithmeticRuntime())
    let pipeline = Pipeline(bundle: small.bundle, runtime: timed)
    let setup = Benchmark.Setup(
      engine: "x", bundle: "x", units: "x", precision: "x", repetitions: 3)
    let benchmark = Benchmark(setup: setup, pipeline: pipeline, runtime: timed)
    let request = PictureRequest(prompt: "ab", sampler: SamplerSettings(steps: 2))
    let latencies = try await benchmark.run(request).latencies
    #expect(latencies.first { $0.what == "package encoder" }?.seconds.count == 3)
  }
}

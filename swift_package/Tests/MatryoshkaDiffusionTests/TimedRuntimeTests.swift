import DiffusionBench
import DiffusionCore
import Synchronization
import TestBundle
import Testing

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
}

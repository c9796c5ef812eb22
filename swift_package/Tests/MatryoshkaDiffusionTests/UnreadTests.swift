#if os(Linux)
  import DiffusionCore
  import Foundation
  import Synchronization
  import TestBundle
  import Testing

  import MatryoshkaDiffusion

  /// What a stream costs whose steps nobody takes, or whose steps somebody keeps.
  @Suite struct UnreadTests {
    private static let steps = 400
    /// Bytes of the previews of all levels of one step.
    private static let previews = 3 * (256 * 256 + 128 * 128)

    /// Bytes of memory in use that came between a quarter of the way and its end.
    private func growth(
      reading: (Steps, _ isOver: () -> Bool) async throws -> Void
    ) async throws -> Int {
      let small = try SmallBundle(side: 256, numSteps: UnreadTests.steps)
      let marks = Mutex<[Int]>([])
      let seen: @Sendable (Int) -> Void = { run in
        guard run == 3 * UnreadTests.steps / 4 || run == 3 * UnreadTests.steps else { return }
        marks.withLock { $0.append(UnreadTests.residentBytes()) }
      }
      let runtime = ArithmeticRuntime { seen($0) }
      let pipeline = Pipeline(bundle: small.bundle, runtime: runtime)
      let sampler = SamplerSettings(steps: UnreadTests.steps)
      let request = PictureRequest(prompt: "", sampler: sampler)
      try await reading(pipeline.generate(request, previews: .all)) {
        marks.withLock { $0.count == 2 }
      }
      await pipeline.idle()
      let found = marks.withLock { $0 }
      try #require(found.count == 2)
      return found[1] - found[0]
    }

    private static func residentBytes() -> Int {
      let text = (try? String(contentsOfFile: "/proc/self/status", encoding: .utf8)) ?? ""
      let line = text.split(separator: "\n").first { $0.hasPrefix("VmRSS:") }
      return line?.split(separator: " ").compactMap { Int($0) }.first.map { $0 << 10 } ?? 0
    }

    @Test func aReaderThatNeverComesCostsNoMemory() async throws {
      let unread = try await growth { stream, isOver in
        while !isOver() { try await Task.sleep(for: .milliseconds(20)) }
        var steps: [Step] = []
        for try await step in stream { steps.append(step) }
        #expect(steps.count <= 2 && steps.last?.finished != nil)
      }
      let held = Mutex<[Step]>([])
      let kept = try await growth { stream, _ in
        for try await step in stream { held.withLock { $0.append(step) } }
      }
      let all = UnreadTests.steps * 3 / 4 * UnreadTests.previews
      print("memory over 300 steps: unread \(unread >> 10) KiB, kept \(kept >> 10) KiB of \(all >> 10)")
      #expect(unread < all / 8)
      #expect(kept > all / 4)
    }
  }
#endif

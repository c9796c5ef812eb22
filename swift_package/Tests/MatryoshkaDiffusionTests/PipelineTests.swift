import DiffusionCore
import Foundation
import TestBundle
import Testing

import MatryoshkaDiffusion

@Suite struct PipelineTests {
  private func request(_ kind: SamplerKind = .ddim, steps: Int = 4) -> PictureRequest {
    PictureRequest(prompt: "", seed: 5, sampler: SamplerSettings(kind: kind, steps: steps))
  }

  private func last(_ stream: Steps) async throws -> Finished? {
    var finished: Finished?
    for try await step in stream { finished = step.finished ?? finished }
    return finished
  }

  private func pipeline(
    _ small: borrowing SmallBundle, _ runtime: ArithmeticRuntime, _ memory: MemoryPolicy = .resident,
    available: Int? = nil
  ) -> Pipeline {
    var options = Pipeline.Options()
    options.memory = memory
    options.availableMemory = { available }
    return Pipeline(bundle: small.bundle, runtime: runtime, options: options)
  }

  @Test func aSeedMeansOnePictureWhateverStaysLoaded() async throws {
    let small = try SmallBundle()
    var pictures: [[Tensor]] = []
    for (memory, most, kept) in [(MemoryPolicy.resident, 3, 3), (.staged, 3, 0), (.minimal, 1, 0)] {
      let runtime = ArithmeticRuntime()
      let finished = try await last(pipeline(small, runtime, memory).generate(request()))
      pictures.append(try #require(finished).values)
      #expect(await runtime.mostLoaded == most)
      #expect(await runtime.loaded.count == kept)
    }
    #expect(pictures[0] == pictures[1] && pictures[1] == pictures[2])
    #expect(pictures[0].map(\.shape) == [[1, 3, 8, 8], [1, 3, 4, 4]])
  }

  // guards: a preview loads a decoder
  @Test func previewsAreOfTheSidesAskedFor() async throws {
    let small = try SmallBundle()
    for (previews, sides) in [(Previews.none, []), (.all, [8, 4]), (.sides([4, 99]), [4])] {
      let stream = pipeline(small, ArithmeticRuntime()).generate(request(), previews: previews)
      for try await step in stream { #expect(step.previews.map(\.width) == sides) }
    }
  }

  @Test func stoppingEarlyRunsTheInnerPackagesAlone() async throws {
    let small = try SmallBundle()
    let runtime = ArithmeticRuntime()
    var asked = request()
    asked.stopAt = 4
    let finished = try await last(pipeline(small, runtime).generate(asked))
    #expect(finished?.pictures.map(\.width) == [4])
    #expect(await runtime.runs == 4)
    #expect(await runtime.loaded == ["core_4"])
    asked.stopAt = 5
    await #expect(throws: MatryoshkaError.self) {
      try await last(pipeline(small, ArithmeticRuntime()).generate(asked))
    }
  }

  /// Cancelled from outside while the n-th package runs: the run ends, and nothing stays.
  @Test(arguments: 1...12)
  func cancellingAtEveryPackageReleasesEverything(run: Int) async throws {
    let small = try SmallBundle()
    let (reached, signal) = AsyncStream<Void>.makeStream()
    let runtime = ArithmeticRuntime { number in
      guard number == run else { return }
      signal.finish()
      while !Task.isCancelled { await Task.yield() }
    }
    let pipeline = pipeline(small, runtime, run % 2 == 0 ? .staged : .resident)
    let asked = request()
    let reader = Task {
      for try await step in pipeline.generate(asked) where step.finished != nil { return true }
      return false
    }
    for await _ in reached {}
    reader.cancel()
    _ = await reader.result
    await pipeline.idle()
    // What the policy keeps between pictures stays: loading again would cost seconds.
    #expect(await runtime.isEmpty == (run % 2 == 0))
    #expect(await runtime.releases == (run + 1) % 2)
    #expect(await runtime.runs == run)
    await pipeline.release()
    #expect(await runtime.isEmpty)
  }

  @Test func endingTheStreamCancels() async throws {
    let small = try SmallBundle()
    let runtime = ArithmeticRuntime { _ in try await Task.sleep(for: .milliseconds(1)) }
    let pipeline = pipeline(small, runtime, .minimal)
    for try await step in pipeline.generate(request(steps: 20)) where step.index == 1 { break }
    await pipeline.idle()
    #expect(await runtime.isEmpty)
    #expect(await runtime.runs < 60)
    // And the next picture does not meet a busy pipeline.
    #expect(try await last(pipeline.generate(request())) != nil)
  }

  @Test(arguments: [SamplerKind.ddim, .ddpm, .dpmpp], 0...3)
  func anInterruptedRunGoesOnToTheSamePicture(kind: SamplerKind, step: Int) async throws {
    let small = try SmallBundle()
    let whole = try await last(pipeline(small, ArithmeticRuntime()).generate(request(kind)))
    let (arrived, arrive) = AsyncStream<Void>.makeStream()
    let (gate, open) = AsyncStream<Void>.makeStream()
    let runtime = ArithmeticRuntime { number in
      // The package in the middle of the step waits until the interruption has come.
      guard number == 3 * step + 2 else { return }
      arrive.finish()
      for await _ in gate {}
    }
    let pipeline = pipeline(small, runtime)
    let watch = Task {
      for await _ in arrived {}
      pipeline.interrupt()
      open.finish()
    }
    do {
      _ = try await last(pipeline.generate(request(kind)))
      Issue.record("it was not interrupted")
    } catch MatryoshkaError.interrupted(let snapshot, _) {
      #expect(snapshot.stepsDone == step)
      #expect(await runtime.isEmpty)
      let stored = try JSONDecoder().decode(Snapshot.self, from: JSONEncoder().encode(snapshot))
      #expect(stored == snapshot)
      let other = self.pipeline(small, ArithmeticRuntime())
      let resumed = try await last(other.resume(stored))
      #expect(resumed?.values == whole?.values)
    }
    watch.cancel()
  }

  @Test func aGivenPictureIsKeptAlsoAfterASnapshot() async throws {
    let small = try SmallBundle()
    let image = try Picture(width: 8, height: 8, rgb: (0..<192).map { UInt8($0) })
    let mask = try Picture(width: 8, height: 8, rgb: (0..<192).map { $0 % 24 < 12 ? 0 : 255 })
    var asked = request(.dpmpp)
    (asked.image, asked.mask) = (image, mask)
    let whole = try #require(try await last(pipeline(small, ArithmeticRuntime()).generate(asked)))
    let kept = (0..<192).filter { $0 % 24 < 12 }
    #expect(kept.allSatisfy { whole.picture.rgb[$0] == image.rgb[$0] })
    #expect(whole.picture.rgb != image.rgb)
    let failing = ArithmeticRuntime { number in
      if number == 8 { throw MatryoshkaError.packageFailed(package: "core_4", reason: "test") }
    }
    do {
      _ = try await last(pipeline(small, failing).generate(asked))
      Issue.record("it did not fail")
    } catch MatryoshkaError.interrupted(let snapshot, _) {
      let stored = try JSONDecoder().decode(Snapshot.self, from: JSONEncoder().encode(snapshot))
      let resumed = try await last(pipeline(small, ArithmeticRuntime()).resume(stored))
      #expect(resumed?.values == whole.values)
    }
    asked.strength = 0
    await #expect(throws: MatryoshkaError.self) {
      try await last(pipeline(small, ArithmeticRuntime()).generate(asked))
    }
  }

  @Test func aSmallPictureIsWhatTheLargeOneAveragesTo() async throws {
    let small = try SmallBundle()
    let image = try Picture(width: 4, height: 4, rgb: (0..<48).map { UInt8(5 * $0) })
    var asked = request()
    (asked.image, asked.level) = (image, 4)
    let made = try #require(try await last(pipeline(small, ArithmeticRuntime()).generate(asked)))
    #expect(made.pictures[1] == image)
    for (place, wanted) in image.rgb.enumerated() {
      let (row, column, channel) = (place / 12, place / 3 % 4, place % 3)
      let sum = [0, 3, 24, 27].reduce(0) {
        $0 + Int(made.picture.rgb[48 * row + 6 * column + $1 + channel])
      }
      #expect(abs(sum - 4 * Int(wanted)) <= 4)
    }
  }

  @Test func aPackageThatFailsLaterLeavesASnapshot() async throws {
    let small = try SmallBundle()
    for (run, isSnapshot) in [(2, false), (8, true)] {
      let runtime = ArithmeticRuntime { number in
        if number == run { throw MatryoshkaError.packageFailed(package: "core_4", reason: "test") }
      }
      do {
        _ = try await last(pipeline(small, runtime).generate(request()))
        Issue.record("it did not fail")
      } catch MatryoshkaError.interrupted(let snapshot, _) {
        #expect(isSnapshot && snapshot.stepsDone == 2)
      } catch MatryoshkaError.packageFailed {
        #expect(!isSnapshot)
      }
      #expect(await runtime.isEmpty)
    }
  }

  @Test func theResultIsNeverDroppedForAReaderThatComesLate() async throws {
    let small = try SmallBundle()
    let pipeline = pipeline(small, ArithmeticRuntime())
    let stream = pipeline.generate(request(steps: 20), previews: .all)
    try await Task.sleep(for: .milliseconds(5))
    await pipeline.idle()
    var steps: [Step] = []
    for try await step in stream { steps.append(step) }
    #expect(steps.count <= 2)
    #expect(steps.last?.finished != nil)
  }

  @Test func aSecondPictureAtATimeIsRefused() async throws {
    let small = try SmallBundle()
    let (reached, signal) = AsyncStream<Void>.makeStream()
    let runtime = ArithmeticRuntime { number in
      if number == 1 { signal.finish() }
      try await Task.sleep(for: .milliseconds(20))
    }
    let pipeline = pipeline(small, runtime)
    let first = pipeline.generate(request())
    for await _ in reached {}
    await #expect(throws: MatryoshkaError.busy) { try await last(pipeline.generate(request())) }
    #expect(try await last(first) != nil)
  }

  @Test func whatDoesNotFitIsRefusedBeforeAnythingIsLoaded() async throws {
    let small = try SmallBundle()
    let runtime = ArithmeticRuntime()
    let tight = pipeline(small, runtime, .automatic, available: 999)
    await #expect(throws: MatryoshkaError.notEnoughMemory(needed: 1000, available: 999)) {
      try await last(tight.generate(request()))
    }
    #expect(await runtime.mostLoaded == 0)
    let peak = small.bundle.manifest.peakMemory
    for (available, policy) in [(5000, MemoryPolicy.resident), (2999, .staged), (1500, .minimal)] {
      #expect(try MemoryPolicy.automatic.resolved(peak, available: available) == policy)
    }
    #expect(try MemoryPolicy.automatic.resolved(peak, available: nil) == .resident)
    // `os_proc_available_memory` (since iOS 13) says 0 for a process without a limit.
    #expect(MemoryPolicy.known(0) == nil && MemoryPolicy.known(1) == 1)
  }

  private struct Refuse: PromptFilter, ImageFilter {
    func refusal(of prompt: String) async -> String? { prompt == "no" ? "test" : nil }
    func refusal(of picture: Picture) async -> String? { "test" }
  }

  @Test func filtersOfTheAppAreAsked() async throws {
    let small = try SmallBundle()
    let runtime = ArithmeticRuntime()
    var options = Pipeline.Options()
    options.promptFilter = Refuse()
    let pipeline = Pipeline(bundle: small.bundle, runtime: runtime, options: options)
    await #expect(throws: MatryoshkaError.promptRefused(reason: "test")) {
      try await last(pipeline.generate(PictureRequest(prompt: "no")))
    }
    #expect(await runtime.runs == 0)
    options.imageFilter = Refuse()
    let strict = Pipeline(bundle: small.bundle, runtime: runtime, options: options)
    await #expect(throws: MatryoshkaError.pictureRefused(reason: "test")) {
      try await last(strict.generate(request()))
    }
  }

  @Test func aSnapshotOfAnotherRunIsRefused() async throws {
    let small = try SmallBundle()
    let states = [try Tensor(zeros: [1, 3, 8, 8]), try Tensor(zeros: [1, 3, 4, 4])]
    let digest = small.bundle.manifest.digest
    let odd = [
      Snapshot(bundleDigest: "x", request: request(), stepsDone: 1, states: states, draws: 1, history: nil),
      Snapshot(bundleDigest: digest, request: request(), stepsDone: 4, states: states, draws: 1, history: nil),
      Snapshot(bundleDigest: digest, request: request(), stepsDone: 1, states: [states[0]], draws: 1, history: nil),
      Snapshot(bundleDigest: digest, request: request(), stepsDone: 1, states: states, draws: 9, history: nil),
      Snapshot(bundleDigest: digest, request: request(.dpmpp), stepsDone: 1, states: states, draws: 1, history: nil),
    ]
    for snapshot in odd {
      await #expect(throws: MatryoshkaError.self) {
        try await last(pipeline(small, ArithmeticRuntime()).resume(snapshot))
      }
    }
  }

  @Test func licencesAreThoseOfTheManifest() throws {
    let small = try SmallBundle()
    #expect(small.bundle.licenses == ["Licence: CC0", "Source: tests"])
  }
}

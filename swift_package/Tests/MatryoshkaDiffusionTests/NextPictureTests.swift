import DiffusionCore
import Foundation
import Synchronization
import TestBundle
import Testing

import MatryoshkaDiffusion

/// What a picture, finished or ended early, means for the next one.
@Suite struct NextPictureTests {
  private func request(_ prompt: String = "", seed: UInt32 = 5, guidance: Double = 1) -> PictureRequest {
    let sampler = SamplerSettings(steps: 4, guidanceScale: guidance)
    return PictureRequest(prompt: prompt, seed: seed, sampler: sampler)
  }

  private func last(_ steps: Steps) async throws -> Step? {
    var last: Step?
    for try await step in steps { last = step }
    return last
  }

  private func use(_ pipeline: Pipeline, _ isPicture: Bool) async throws {
    if isPicture { _ = try await last(pipeline.generate(request())) } else { try await pipeline.prepare() }
  }

  /// The small bundle needs 3000 bytes, which its packages take from those that are free.
  @Test func ourOwnPackagesAreNotMissingMemory() async throws {
    let small = try SmallBundle()
    let runtime = ArithmeticRuntime()
    let names = Set(small.bundle.manifest.packages.map(\.name))
    let memory = Memory()
    var options = Pipeline.Options()
    options.availableMemory = { memory.isTaken.withLock { $0 } ? 10 : 3000 }
    let pipeline = Pipeline(bundle: small.bundle, runtime: runtime, options: options)
    try await pipeline.prepare()
    memory.isTaken.withLock { $0 = true }
    try await pipeline.prepare()
    for seed in 1...3 {
      #expect(try await last(pipeline.generate(request(seed: UInt32(seed))))?.finished != nil)
    }
    #expect(await runtime.loaded == names)
    await pipeline.release()
    await #expect(throws: MatryoshkaError.notEnoughMemory(needed: 1000, available: 10)) {
      try await last(pipeline.generate(request()))
    }
  }

  private final class Memory: Sendable {
    let isTaken = Mutex(false)
  }

  @Test func refusalsKeepWhatIsLoaded() async throws {
    let small = try SmallBundle()
    let runtime = ArithmeticRuntime()
    let pipeline = Pipeline(bundle: small.bundle, runtime: runtime)
    _ = try await last(pipeline.generate(request()))
    var odd = request()
    odd.stopAt = 3
    await #expect(throws: MatryoshkaError.self) { try await last(pipeline.generate(odd)) }
    #expect(await runtime.releases == 0)
    #expect(await runtime.loaded.count == 3)
  }

  @Test func aSecondLoopThatEndsLeavesTheFirstOneItsSteps() async throws {
    let small = try SmallBundle()
    let runtime = ArithmeticRuntime { _ in try await Task.sleep(for: .milliseconds(2)) }
    let pipeline = Pipeline(bundle: small.bundle, runtime: runtime)
    var long = request()
    long.sampler.steps = 20
    let steps = pipeline.generate(long)
    var first = steps.makeAsyncIterator()
    var last = try await first.next()
    do {
      var second = steps.makeAsyncIterator()
      last = try await second.next() ?? last
    }
    while let step = try await first.next() { last = step }
    #expect(last?.finished != nil)
  }

  /// The stream stays in scope, as in most apps, where no last reference goes away.
  @Test func leavingTheLoopEndsTheRun() async throws {
    let small = try SmallBundle()
    let runtime = ArithmeticRuntime { _ in try await Task.sleep(for: .milliseconds(2)) }
    let pipeline = Pipeline(bundle: small.bundle, runtime: runtime)
    var long = request()
    long.sampler.steps = 20
    let steps = pipeline.generate(long)
    for try await step in steps where step.index == 1 { break }
    #expect(try await last(pipeline.generate(request()))?.finished != nil)
    #expect(await runtime.runs < 40)
    _ = steps
  }

  @Test func stepsThatNobodyReadsEndWithTheirLastReference() async throws {
    let small = try SmallBundle()
    let runtime = ArithmeticRuntime { _ in try await Task.sleep(for: .milliseconds(2)) }
    let pipeline = Pipeline(bundle: small.bundle, runtime: runtime)
    var long = request()
    long.sampler.steps = 20
    do { _ = pipeline.generate(long) }
    await pipeline.idle()
    #expect(await runtime.runs < 40)
  }

  @Test func theNextPictureMayBeAskedForWithTheResult() async throws {
    let small = try SmallBundle()
    let pipeline = Pipeline(bundle: small.bundle, runtime: ArithmeticRuntime())
    for try await step in pipeline.generate(request()) where step.finished != nil {
      #expect(try await last(pipeline.generate(request()))?.finished != nil)
    }
  }

  /// A student's packages have the names and shapes of its teacher's.
  @Test func aRuntimeOfAnotherBundleIsRefused() async throws {
    let teacher = try SmallBundle()
    let student = try SmallBundle(.student)
    let runtime = ArithmeticRuntime(bundleDigest: student.bundle.manifest.digest)
    let pipeline = Pipeline(bundle: teacher.bundle, runtime: runtime)
    for work in [{ try await pipeline.prepare() }, { _ = try await last(pipeline.generate(request())) }] {
      let error = await #expect(throws: MatryoshkaError.self) { try await work() }
      #expect(error?.errorDescription?.hasPrefix("runtime: runs the bundle ") == true)
    }
    #expect(await runtime.mostLoaded == 0)
    let own = ArithmeticRuntime(bundleDigest: teacher.bundle.manifest.digest)
    let right = Pipeline(bundle: teacher.bundle, runtime: own)
    #expect(try await last(right.generate(request()))?.finished != nil)
  }

  /// A preparation is a use like any other: the next one and a picture wait for it.
  @Test(arguments: [true, false])
  func whatComesDuringAPreparationWaitsForIt(isPicture: Bool) async throws {
    let small = try SmallBundle()
    let (gate, (arrived, arrive)) = (Gate(), AsyncStream<Void>.makeStream())
    let loads = Mutex(0)
    let runtime = ArithmeticRuntime(beforeLoad: {
      loads.withLock { $0 += 1 }
      arrive.finish()
      await gate.pass()
    })
    let pipeline = Pipeline(bundle: small.bundle, runtime: runtime)
    async let preparation: Void = pipeline.prepare()
    for await _ in arrived {}
    async let second: Void = use(pipeline, isPicture)
    try await Task.sleep(for: .milliseconds(5))
    gate.open()
    try await preparation
    try await second
    #expect(loads.withLock { $0 } == 3)
  }

  @Test func anInterruptedPreparationEndsAndReleases() async throws {
    let small = try SmallBundle()
    let (gate, (arrived, arrive)) = (Gate(), AsyncStream<Void>.makeStream())
    let runtime = ArithmeticRuntime(beforeLoad: {
      arrive.finish()
      await gate.pass()
    })
    let pipeline = Pipeline(bundle: small.bundle, runtime: runtime)
    let preparation = Task { try await pipeline.prepare() }
    for await _ in arrived {}
    pipeline.interrupt()
    gate.open()
    await #expect(throws: CancellationError.self) { try await preparation.value }
    #expect(await runtime.mostLoaded == 1)
    #expect(await runtime.isEmpty)
  }

  @Test(arguments: [MemoryPolicy.resident, .staged, .minimal])
  func aPromptIsReadAndEncodedOnceForAllSeeds(memory: MemoryPolicy) async throws {
    let small = try SmallBundle(.text)
    var options = Pipeline.Options()
    options.memory = memory
    func pipeline(_ runtime: ArithmeticRuntime) -> Pipeline {
      Pipeline(bundle: small.bundle, runtime: runtime, options: options)
    }
    let runtime = ArithmeticRuntime()
    let kept = pipeline(runtime)
    var pictures: [[Tensor]?] = []
    for seed in 1...3 {
      let asked = request("abc", seed: UInt32(seed), guidance: 3)
      pictures.append(try await last(kept.generate(asked))?.finished?.values)
    }
    #expect(await runtime.runsByName["encoder"] == 2)  // the prompt and the negative prompt
    for seed in 1...3 {
      let fresh = pipeline(ArithmeticRuntime())
      let alone = try await last(fresh.generate(request("abc", seed: UInt32(seed), guidance: 3)))
      #expect(alone?.finished?.values == pictures[seed - 1])
    }
    // The tokenizer is not read again for another prompt, of which only the new half is encoded.
    try FileManager.default.removeItem(at: small.url.appending(path: "tokenizer.model"))
    let other = try await last(kept.generate(request("fed", seed: 1, guidance: 3)))
    #expect(other?.finished?.values != pictures[0])
    #expect(await runtime.runsByName["encoder"] == 3)
    let again = try await last(kept.generate(request("abc", seed: 1, guidance: 3)))
    #expect(again?.finished?.values == pictures[0])
    await kept.release()
    await #expect(throws: MatryoshkaError.self) { try await last(kept.generate(request("abc"))) }
  }

  @Test func aPromptThatIsCutIsSaid() async throws {
    let small = try SmallBundle(.text)
    let pipeline = Pipeline(bundle: small.bundle, runtime: ArithmeticRuntime())
    #expect(try await last(pipeline.generate(request("ab")))?.remarks == [])
    var long = request("ab cd", guidance: 3)
    long.negativePrompt = "fedcba"
    for _ in 1...2 {
      #expect(
        try await last(pipeline.generate(long))?.remarks == [
          "The prompt has 7 tokens, but the model reads 4; it ignores \"cd\".",
          "The negative prompt has 8 tokens, but the model reads 4; it ignores \"dcba\".",
        ])
    }
  }
}

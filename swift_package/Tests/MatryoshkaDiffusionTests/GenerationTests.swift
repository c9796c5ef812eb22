import DiffusionCore
import TestBundle
import Testing

import MatryoshkaDiffusion

@MainActor
@Suite struct GenerationTests {
  private let request = PictureRequest(prompt: "", sampler: SamplerSettings(steps: 4))

  private func generation(
    _ small: borrowing SmallBundle, _ runtime: ArithmeticRuntime = ArithmeticRuntime(),
    _ memory: MemoryPolicy = .automatic
  ) -> (Generation, Pipeline) {
    var options = Pipeline.Options()
    options.memory = memory
    let pipeline = Pipeline(bundle: small.bundle, runtime: runtime, options: options)
    return (Generation(pipeline: pipeline), pipeline)
  }

  @Test func itEndsWithThePicture() async throws {
    let small = try SmallBundle()
    let (generation, _) = generation(small)
    generation.start(request)
    await generation.wait()
    #expect(generation.state == .finished)
    #expect(generation.pictures.map(\.width) == [8, 4])
  }

  @Test func itGoesOnAfterAnInterruption() async throws {
    let small = try SmallBundle()
    let (arrived, arrive) = AsyncStream<Void>.makeStream()
    let (gate, open) = AsyncStream<Void>.makeStream()
    let runtime = ArithmeticRuntime { number in
      guard number == 5 else { return }
      arrive.finish()
      for await _ in gate {}
    }
    let (generation, _) = generation(small, runtime)
    generation.start(request)
    for await _ in arrived {}
    await generation.interrupt()
    open.finish()
    await generation.wait()
    #expect(generation.state == .interrupted(reason: "in the background"))
    generation.resume()
    await generation.wait()
    #expect(generation.state == .finished)
  }

  // guards: cancelling leaves the network in memory
  @Test func cancellingReleasesAndAFailureIsASentence() async throws {
    let small = try SmallBundle()
    let runtime = ArithmeticRuntime { _ in try await Task.sleep(for: .milliseconds(5)) }
    let (generation, _) = generation(small, runtime, .staged)
    generation.start(request)
    generation.cancel()
    await generation.wait()
    #expect(generation.state == .idle)
    #expect(await runtime.isEmpty)
    var odd = request
    odd.stopAt = 3
    generation.start(odd)
    await generation.wait()
    #expect(generation.state == .failed("stopAt: this model has sides [8, 4], got 3."))
  }

  /// None of the readers has been scheduled yet when the next run is asked for.
  @Test func startingCancellingAndInterruptingInOneBreathReachTheNewestRun() async throws {
    let small = try SmallBundle()
    let runtime = ArithmeticRuntime { _ in try await Task.sleep(for: .milliseconds(1)) }
    let (generation, _) = generation(small, runtime)
    for _ in 1...20 {
      generation.start(request)
      generation.cancel()
      generation.start(request)
      generation.start(request)
      await generation.interrupt()
      await generation.wait()
      #expect(generation.state == .interrupted(reason: "in the background"))
    }
    generation.resume()
    await generation.wait()
    #expect(generation.state == .finished)
  }

  @Test func aResumptionThatFailsCanBeTriedAgain() async throws {
    let small = try SmallBundle()
    let runtime = ArithmeticRuntime { number in
      if number == 1 { throw MatryoshkaError.packageFailed(package: "down_8", reason: "test") }
    }
    let (generation, _) = generation(small, runtime)
    generation.start(request)
    await generation.interrupt()
    await generation.wait()
    #expect(generation.state == .interrupted(reason: "in the background"))
    generation.resume()
    await generation.wait()
    #expect(generation.state == .failed("package down_8: test."))
    generation.resume()
    await generation.wait()
    #expect(generation.state == .finished)
  }

  @Test func whatWasCutIsShown() async throws {
    let small = try SmallBundle(.text)
    let (generation, _) = generation(small)
    generation.start(PictureRequest(prompt: "abcdef", sampler: SamplerSettings(steps: 2)))
    await generation.wait()
    #expect(generation.remarks == ["The prompt has 8 tokens, but the model reads 4; it ignores \"cdef\"."])
    generation.start(PictureRequest(prompt: "ab", sampler: SamplerSettings(steps: 2)))
    await generation.wait()
    #expect(generation.remarks.isEmpty)
  }
}

import DiffusionCore
import Testing

import MatryoshkaDiffusion

@MainActor
@Suite struct GenerationTests {
  private let request = PictureRequest(prompt: "", sampler: SamplerSettings(steps: 4))

  private func generation(
    _ small: borrowing SmallBundle, _ runtime: ArithmeticRuntime = ArithmeticRuntime()
  ) -> (Generation, Pipeline) {
    let pipeline = Pipeline(bundle: small.bundle, runtime: runtime)
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
    let (numbers, reached) = AsyncStream<Int>.makeStream()
    let runtime = ArithmeticRuntime { number in
      reached.yield(number)
      if number == 5 { try await Task.sleep(for: .milliseconds(200)) }
    }
    let (generation, _) = generation(small, runtime)
    generation.start(request)
    for await number in numbers where number == 5 { break }
    await generation.interrupt()
    await generation.wait()
    #expect(generation.state == .interrupted(reason: "in the background"))
    generation.resume()
    await generation.wait()
    #expect(generation.state == .finished)
  }

  @Test func cancellingReleasesAndAFailureIsASentence() async throws {
    let small = try SmallBundle()
    let runtime = ArithmeticRuntime { _ in try await Task.sleep(for: .milliseconds(5)) }
    let (generation, pipeline) = generation(small, runtime)
    generation.start(request)
    generation.cancel()
    await pipeline.idle()
    #expect(generation.state == .idle)
    #expect(await runtime.isEmpty)
    var odd = request
    odd.stopAt = 3
    generation.start(odd)
    await generation.wait()
    #expect(generation.state == .failed("stopAt: this model has sides [8, 4], got 3."))
  }
}

import DiffusionCore
import TestBundle
import Testing

import MatryoshkaDiffusion

/// Distilled models, and functions that stop at a side.
@Suite struct StudentTests {
  private func jump(_ steps: Int?, _ weight: Double = 1) -> PictureRequest {
    let settings = SamplerSettings(kind: .student, steps: steps, guidanceScale: weight)
    return PictureRequest(prompt: "", seed: 5, sampler: settings)
  }

  private func picture(_ small: borrowing SmallBundle, _ request: PictureRequest) async throws -> [Tensor]? {
    let pipeline = Pipeline(bundle: small.bundle, runtime: ArithmeticRuntime())
    var finished: Finished?
    for try await step in pipeline.generate(request) { finished = step.finished }
    return finished?.values
  }

  @Test func aStudentTakesItsStepsAndHearsTheWeight() async throws {
    let small = try SmallBundle(.student)
    var pictures: [[Tensor]] = []
    for (steps, weight) in [(1, 1.0), (2, 1), (4, 1), (1, 2)] {
      pictures.append(try #require(await picture(small, jump(steps, weight))))
    }
    for (index, one) in pictures.enumerated() {
      #expect(one.map(\.shape) == [[1, 3, 8, 8], [1, 3, 4, 4]])
      for other in pictures[..<index] { #expect(one != other) }
    }
    let proposed = SamplerSettings(proposedBy: small.bundle.manifest)
    #expect(proposed.kind == .student && proposed.steps == 1 && proposed.guidanceScale == 1)
  }

  @Test func whatWasNotLearnedIsRefused() async throws {
    let small = try SmallBundle(.student)
    var negative = jump(1)
    negative.negativePrompt = "x"
    let others = [
      jump(3), jump(nil), jump(1, 1.5), negative,
      PictureRequest(prompt: "", sampler: SamplerSettings(steps: 4)),
    ]
    for request in others {
      await #expect(throws: MatryoshkaError.self) { try await picture(small, request) }
    }
    let plain = try SmallBundle()
    await #expect(throws: MatryoshkaError.self) { try await picture(plain, jump(1)) }
  }

  @Test func aFunctionPerSideRunsAlone() async throws {
    let small = try SmallBundle(.functions)
    let runtime = ArithmeticRuntime()
    var options = Pipeline.Options()
    options.memory = .resident
    let pipeline = Pipeline(bundle: small.bundle, runtime: runtime, options: options)
    for (side, name) in [(8, "stop_8"), (4, "stop_4"), (8, "stop_8")] {
      let sampler = SamplerSettings(steps: 2)
      let request = PictureRequest(prompt: "", sampler: sampler, stopAt: side)
      for try await step in pipeline.generate(request) where step.finished != nil {
        #expect(step.finished?.picture.width == side)
      }
      #expect(await runtime.loaded == [name])
    }
    #expect(await runtime.runs == 6)
    #expect(await runtime.mostLoaded == 1)
    await pipeline.release()
    try await pipeline.prepare()
    #expect(await runtime.loaded == ["stop_8"])
  }
}

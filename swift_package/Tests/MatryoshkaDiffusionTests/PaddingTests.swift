import DiffusionCore
import TestBundle
import Testing

import MatryoshkaDiffusion

/// How much of the padding a network sees: up to the longest caption of the same picture.
@Suite struct PaddingTests {
  private func request(_ prompt: String, _ negative: String? = nil) -> PictureRequest {
    let sampler = SamplerSettings(steps: 2, guidanceScale: negative == nil ? 1 : 4)
    return PictureRequest(prompt: prompt, negativePrompt: negative ?? "", seed: 5, sampler: sampler)
  }

  private func picture(_ pipeline: Pipeline, _ request: PictureRequest) async throws -> [Tensor] {
    var values: [Tensor]?
    for try await step in pipeline.generate(request) { values = step.finished?.values ?? values }
    return try #require(values)
  }

  /// What every context is told: one of the prompt, and one of the negative prompt if it is guided.
  @Test(arguments: [
    ("a", nil, [3]), ("", nil, [2]), ("abcdefabcdef", nil, [8]), ("abcdef", nil, [8]),
    ("a", "", [3, 3]), ("a", "abcd", [6, 6]), ("abcd", "a", [6, 6]), ("", "", [2, 2]),
    ("a", "abcdefabcdef", [8, 8]),
  ])
  func bothCaptionsSeeUpToTheLonger(prompt: String, negative: String?, seen: [Int]) async throws {
    let small = try SmallBundle(.padded(.space))
    let runtime = ArithmeticRuntime()
    _ = try await picture(Pipeline(bundle: small.bundle, runtime: runtime), request(prompt, negative))
    #expect(await runtime.seen == seen)
  }

  @Test func aCaptionOfOneTokenIsSeenAlone() async throws {
    let small = try SmallBundle(.padded(.end))
    let runtime = ArithmeticRuntime()
    let pipeline = Pipeline(bundle: small.bundle, runtime: runtime)
    for asked in [request(""), request("", ""), request("a", " ")] {
      _ = try await picture(pipeline, asked)
    }
    #expect(await runtime.seen == [1, 1, 1, 3, 3])
  }

  @Test func otherBundlesAreToldNothing() async throws {
    let small = try SmallBundle(.text)
    let runtime = ArithmeticRuntime()
    _ = try await picture(Pipeline(bundle: small.bundle, runtime: runtime), request("a", "ab"))
    #expect(await runtime.seen.isEmpty)
  }

  /// The encoder's answer to a caption is kept whatever stands beside it, and what the network sees is not.
  @Test(arguments: [MemoryPolicy.resident, .staged, .minimal])
  func aCaptionThatIsKeptSeesItsNewNeighbour(memory: MemoryPolicy) async throws {
    let small = try SmallBundle(.padded(.space))
    var options = Pipeline.Options()
    options.memory = memory
    let runtime = ArithmeticRuntime()
    let kept = Pipeline(bundle: small.bundle, runtime: runtime, options: options)
    let asked = [request("a", "abcd"), request("a", "b"), request("a"), request("a", "abcd")]
    var pictures: [[Tensor]] = []
    for one in asked {
      pictures.append(try await picture(kept, one))
      let fresh = Pipeline(bundle: small.bundle, runtime: ArithmeticRuntime(), options: options)
      #expect(try await picture(fresh, one) == pictures.last)
    }
    #expect(await runtime.seen == [6, 6, 3, 3, 3, 6, 6])
    // a, abcd; b; nothing; abcd, which was forgotten
    #expect(await runtime.runsByName["encoder"] == 4)
    #expect(pictures[0] == pictures[3])
    #expect(pictures[0] != pictures[1] && pictures[1] != pictures[2])
  }
}

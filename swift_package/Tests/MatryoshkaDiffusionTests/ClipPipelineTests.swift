import DiffusionCore
import Foundation
import TestBundle
import Testing

import MatryoshkaDiffusion

@Suite struct ClipPipelineTests {
  private let request = ClipRequest(prompt: "", seed: 5, sampler: SamplerSettings(steps: 3))

  private func pipeline(
    _ small: borrowing SmallBundle, filter: (any ImageFilter)? = nil,
    _ runtime: ArithmeticRuntime = ArithmeticRuntime()
  ) -> Pipeline {
    var options = Pipeline.Options()
    options.imageFilter = filter
    return Pipeline(bundle: small.bundle, runtime: runtime, options: options)
  }

  private func last(_ steps: Steps) async throws -> Finished? {
    var finished: Finished?
    for try await step in steps { finished = step.finished ?? finished }
    return finished
  }

  @Test func aClipHasTheFramesOfItsCanvas() async throws {
    let small = try SmallBundle(.clips)
    let finished = try #require(try await last(pipeline(small).clip(request)))
    #expect(finished.pictures.map(\.width) == [8, 4])
    #expect(finished.clips.map(\.frames.count) == [4, 1])
    #expect(finished.clips.allSatisfy { $0.fps == 8 && $0.frames[0].width == 4 })
    for (clip, canvas) in zip(finished.clips, finished.pictures) { #expect(try clip.canvas() == canvas) }
    #expect(finished.clip == finished.clips[0])
    // The same numbers as of a bundle of pictures of these sides: a canvas is a picture.
    let plain = try SmallBundle()
    let picture = try await last(pipeline(plain).generate(request))
    #expect(picture?.values == finished.values)
    #expect(picture?.clips.isEmpty == true && picture?.clip == nil)
  }

  @Test func everyStepShowsAllLevels() async throws {
    let small = try SmallBundle(.clips)
    for (previews, counts) in [(Previews.none, []), (.all, [4, 1]), (.sides([4, 99]), [1])] {
      for try await step in pipeline(small).clip(request, previews: previews) {
        #expect(step.clips.map(\.frames.count) == counts)
        for (clip, canvas) in zip(step.clips, step.previews) { #expect(try clip.canvas() == canvas) }
      }
    }
  }

  @Test func aBundleRefusesTheOtherKindBeforeAnythingIsLoaded() async throws {
    let clips = try SmallBundle(.clips)
    let pictures = try SmallBundle()
    let runtime = ArithmeticRuntime()
    var atKeyFrame = request
    atKeyFrame.stopAt = 4
    let refused: [(Steps, String)] = [
      (
        pipeline(clips, runtime).generate(request),
        "this bundle makes clips; ask for one with clip(_:previews:), or set stopAt to 4 for its key frame."
      ),
      (
        pipeline(pictures, runtime).clip(request),
        "this bundle makes pictures; ask for one with generate(_:previews:)."
      ),
      (
        pipeline(clips, runtime).clip(atKeyFrame),
        "the level of side 4 makes a picture; ask for it with generate(_:previews:), or leave out stopAt."
      ),
    ]
    for (steps, sentence) in refused {
      let error = await #expect(throws: MatryoshkaError.self) { try await last(steps) }
      #expect(error?.errorDescription == sentence)
      #expect(error?.code == "wrong_kind")
    }
    #expect(await runtime.mostLoaded == 0)
    var nowhere = request
    nowhere.stopAt = 5
    for steps in [pipeline(clips).clip(nowhere), pipeline(clips).generate(nowhere)] {
      let error = await #expect(throws: MatryoshkaError.self) { try await last(steps) }
      #expect(error?.errorDescription == "stopAt: this model has sides [8, 4], got 5.")
    }
  }

  @Test func stoppingAtTheKeyFrameGivesAPicture() async throws {
    let small = try SmallBundle(.clips)
    var asked = request
    asked.stopAt = 4
    let runtime = ArithmeticRuntime()
    let steps = pipeline(small, runtime).generate(asked, previews: .all)
    var finished: Finished?
    for try await step in steps {
      #expect(step.previews.map(\.width) == [4] && step.clips.isEmpty)
      finished = step.finished
    }
    #expect(finished?.pictures.map(\.width) == [4])
    #expect(finished?.clips.isEmpty == true)
    #expect(await runtime.runs == 3)
  }

  @Test func anInterruptedClipGoesOnToTheSameClip() async throws {
    let small = try SmallBundle(.clips)
    let whole = try await last(pipeline(small).clip(request))
    let failing = ArithmeticRuntime { number in
      if number == 5 { throw MatryoshkaError.packageFailed(package: "core_4", reason: "test") }
    }
    do {
      _ = try await last(pipeline(small, failing).clip(request))
      Issue.record("it was not interrupted")
    } catch MatryoshkaError.interrupted(let snapshot, _) {
      let resumed = try await last(pipeline(small).resume(snapshot))
      #expect(resumed?.clips == whole?.clips)
    }
  }

  /// Refuses all pictures but those of a side.
  private struct Only: ImageFilter {
    let side: Int

    func refusal(of picture: Picture) async -> String? { picture.width == side ? nil : "\(picture.width)" }
  }

  @Test func aFilterSeesFrames() async throws {
    let small = try SmallBundle(.clips)
    let finished = try await last(pipeline(small, filter: Only(side: 4)).clip(request, previews: .all))
    #expect(finished != nil)
    await #expect(throws: MatryoshkaError.pictureRefused(reason: "4")) {
      try await last(pipeline(small, filter: Only(side: 8)).clip(request))
    }
  }

  @MainActor
  @Test func aViewGetsClips() async throws {
    let small = try SmallBundle(.clips)
    let generation = Generation(pipeline: pipeline(small))
    generation.start(clip: request)
    await generation.wait()
    #expect(generation.state == .finished)
    #expect(generation.clips.map(\.frames.count) == [4, 1])
    generation.start(request)
    #expect(generation.clips.isEmpty)
    await generation.wait()
    guard case .failed(let sentence) = generation.state else {
      Issue.record("a picture was made")
      return
    }
    #expect(sentence.hasPrefix("this bundle makes clips"))
  }

  /// Of 3 x 2 pixels, and of even sides that are large enough.
  @Test func framesOfMoviesAreEnlargedToEvenSides() throws {
    let picture = try Picture(width: 3, height: 2, rgb: (0..<18).map { UInt8($0) })
    let frame = MovieFrame(picture)
    #expect(frame.width == 384 && frame.height == 256)
    let stride = 4 * 384 + 8
    var bytes = [UInt8](repeating: 7, count: stride * 256)
    bytes.withUnsafeMutableBytes { frame.write(to: $0, bytesPerRow: stride) }
    #expect(Array(bytes[0..<4]) == [2, 1, 0, 255])
    #expect(Array(bytes[4 * 128..<4 * 128 + 4]) == [5, 4, 3, 255])
    #expect(Array(bytes[stride * 128 + 4 * 383..<stride * 128 + 4 * 383 + 5]) == [17, 16, 15, 255, 7])
    for (side, wanted) in [(1, 256), (32, 256), (86, 258), (87, 348), (256, 256), (257, 514), (300, 300)] {
      let square = try Picture(width: side, height: side, rgb: [UInt8](repeating: 0, count: 3 * side * side))
      #expect(MovieFrame(square).width == wanted, "\(side)")
    }
  }
}

import DiffusionCore
import Foundation
import TestBundle
import Testing

@Suite struct ClipTests {
  /// A frame of 2 x 3 pixels whose bytes count up from a number.
  private func frame(_ first: UInt8, width: Int = 2) throws -> Picture {
    try Picture(width: width, height: 3, rgb: (0..<9 * width).map { first + UInt8($0) })
  }

  @Test func framesAreTiledRowByRow() throws {
    let frames = try [0, 50, 100, 150].map { try frame($0) }
    let canvas = try Clip(frames: frames, fps: 8).canvas()
    #expect(canvas.width == 4 && canvas.height == 6)
    #expect(Array(canvas.rgb[0..<12]) == [0, 1, 2, 3, 4, 5, 50, 51, 52, 53, 54, 55])
    #expect(Array(canvas.rgb[36..<48]) == [100, 101, 102, 103, 104, 105, 150, 151, 152, 153, 154, 155])
    let back = try Clip(canvas: canvas, frames: 4, fps: 8)
    #expect(back.frames == frames)
    // Another order is another canvas.
    #expect(try Clip(frames: frames.reversed(), fps: 8).canvas() != canvas)
  }

  @Test func aCanvasThatItsFramesDoNotFillIsRefused() throws {
    let canvas = try Picture(width: 4, height: 6, rgb: [UInt8](repeating: 0, count: 72))
    for count in [-1, 0, 2, 3, 9, 16, Int.max] {
      let error = #expect(throws: MatryoshkaError.self) { try Clip(canvas: canvas, frames: count, fps: 8) }
      #expect(error?.code == "invalid_picture")
    }
    #expect(throws: MatryoshkaError.self) { try Clip(frames: [frame(0), frame(1)], fps: 8).canvas() }
  }

  @Test func whatIsNoClipIsRefused() throws {
    #expect(throws: MatryoshkaError.self) { try Clip(frames: [], fps: 8) }
    #expect(throws: MatryoshkaError.self) { try Clip(frames: [frame(0), frame(0, width: 3)], fps: 8) }
    #expect(throws: MatryoshkaError.self) { try Clip(frames: [frame(0)], fps: 0) }
    #expect(throws: MatryoshkaError.self) { try Clip(frames: [frame(0)], fps: 241) }
  }

  @Test func afterTheLastFrameComesTheFirst() throws {
    let frames = try [0, 50, 100].map { try frame($0) }
    let clip = try Clip(frames: frames, fps: 4)
    #expect(clip.seconds == 0.75)
    for (seconds, index) in [(0, 0), (0.24, 0), (0.25, 1), (0.74, 2), (0.75, 0), (1e9, 1), (-0.1, 2), (-0.75, 0)] {
      #expect(clip.frame(at: seconds) == frames[index], "\(seconds)")
    }
    #expect(clip.frame(at: .nan) == frames[0] && clip.frame(at: .infinity) == frames[0])
  }

  /// tests/test_swift_clips.py lets Pillow read such files.
  @MainActor  // as a view writes it
  @Test func aWriterMakesTheSameFileAsTheClip() async throws {
    let clip = try Clip(frames: [frame(0), frame(0), frame(9)], fps: 12)
    let url = FileManager.default.temporaryDirectory.appending(path: "\(UUID().uuidString).png")
    defer { try? FileManager.default.removeItem(at: url) }
    var writer = try APNGWriter(url: url, fps: 12, text: ("mdm", "{}"))
    try await clip.write(with: &writer)
    #expect(try [UInt8](Data(contentsOf: url)) == clip.apng(text: ("mdm", "{}")))
    #expect(clip.apng(text: ("mdm", "{}")) != clip.apng())
  }

  @Test func aWriterRefusesWhatIsNoClip() throws {
    let url = FileManager.default.temporaryDirectory.appending(path: "\(UUID().uuidString).png")
    #expect(throws: MatryoshkaError.self) { try APNGWriter(url: url, fps: 0) }
    var writer = try APNGWriter(url: url, fps: 8)
    #expect(throws: MatryoshkaError.self) { try writer.finish() }
    try writer.append(frame(0))
    #expect(throws: MatryoshkaError.self) { try writer.append(frame(0, width: 3)) }
    #expect(!FileManager.default.fileExists(atPath: url.path))
    var nowhere = try APNGWriter(url: URL(filePath: "/no/such/folder/clip.png"), fps: 8)
    try nowhere.append(frame(0))
    let error = #expect(throws: MatryoshkaError.self) { try nowhere.finish() }
    #expect(error?.code == "file_system")
  }

  @Test func aRecipeSaysFramesOfClipsAlone() throws {
    let sampler = SamplerSettings(kind: .ddpm, steps: nil, guidanceScale: 2, threshold: .dynamicIf, grid: .logSNR)
    var request = ClipRequest(prompt: "a \"b\"", negativePrompt: "c", seed: 7, sampler: sampler)
    let small = try SmallBundle(.clips)
    let digest = small.bundle.manifest.digest
    let text = Recipe(of: request, bundle: small.bundle, backend: .reference, precision: "fp32").text
    #expect(text.key == "mdm")
    #expect(
      text.value
        == #"{"backend":"reference","eta":0.0,"fps":8,"frames":4,"grid":"log_snr","guidance":2.0,"#
        + #""model":"\#(digest)","negative":"c","precision":"fp32","prompt":"a \"b\"","quantize":null,"#
        + #""sampler":"ddpm","seed":7,"steps":null,"stop_at":null,"threshold":"dynamic_if","version":""}"#)
    request.stopAt = 4
    let key = Recipe(of: request, bundle: small.bundle).text.value
    #expect(!key.contains("frames") && !key.contains("fps") && key.contains(#""stop_at":4"#))
    #expect(key.contains(#""backend":"coreml""#) && key.contains(#""precision":"fp16""#))
    let pictures = try SmallBundle(format: .coreai)
    #expect(Recipe(of: request, bundle: pictures.bundle).text.value.contains(#""backend":"coreai""#))
  }
}

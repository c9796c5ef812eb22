import DiffusionCore
import Foundation

/// Converts raw RGB bytes of square frames.
enum Clips {
  /// Writes the canvas of all frames, and the frames that the canvas is cut into.
  static func fold(raw: String, side: Int, canvas: String, back: String) throws {
    let clip = try clip(raw, side, fps: 1)
    let folded = try clip.canvas()
    try mdm_dump.write(folded.rgb, to: canvas)
    let unfolded = try Clip(canvas: folded, frames: clip.frames.count, fps: 1)
    try mdm_dump.write(unfolded.frames.flatMap(\.rgb), to: back)
  }

  static func write(raw: String, side: Int, fps: Int, out: String) throws {
    let clip = try clip(raw, side, fps: fps)
    var writer = try APNGWriter(url: URL(filePath: out), fps: fps, text: ("mdm", "{\"a\": \"é\"}"))
    for frame in clip.frames { try writer.append(frame) }
    try writer.finish()
  }

  private static func clip(_ raw: String, _ side: Int, fps: Int) throws -> Clip {
    let rgb = try mdm_dump.read(raw)
    let size = 3 * side * side
    let frames = try stride(from: 0, to: rgb.count, by: max(size, 1)).map {
      try Picture(width: side, height: side, rgb: Array(rgb[$0..<min($0 + size, rgb.count)]))
    }
    return try Clip(frames: frames, fps: fps)
  }
}

import Foundation

/// Writes the frames of a clip to a file, one after the other. Call it from one place at a time.
public protocol ClipWriter: Sendable {
  /// Adds a frame. Throws a ``MatryoshkaError`` if it differs in size from the one before.
  mutating func append(_ frame: Picture) async throws
  /// Ends the file, which appears complete or not at all. Throws a ``MatryoshkaError``.
  mutating func finish() async throws
}

extension Clip {
  /// Writes all frames and ends the file.
  public func write(with writer: inout some ClipWriter) async throws {
    for frame in frames { try await writer.append(frame) }
    try await writer.finish()
  }

  /// The contents of an animated PNG file, lossless and repeated for ever.
  ///
  /// - Parameter text: a key and a text stored in the file, as `mdm sample` stores its recipes.
  public func apng(text: (key: String, value: String)? = nil) -> [UInt8] {
    var file = AnimatedPNG(fps: fps)
    for frame in frames { file.append(frame) }
    return file.contents(text: text)
  }
}

/// Writes an animated PNG file: lossless, repeated for ever. A program that knows no such files shows the
/// first frame. The frames are in memory until the file ends.
public struct APNGWriter: ClipWriter {
  private let url: URL
  private let text: (key: String, value: String)?
  private var file: AnimatedPNG

  /// - Parameters:
  ///   - url: of the file, which is replaced if it exists.
  ///   - fps: frames per second, within ``Clip/rates``.
  ///   - text: a key and a text stored in the file, as `mdm sample` stores its recipes.
  public init(url: URL, fps: Int, text: (key: String, value: String)? = nil) throws {
    guard Clip.rates.contains(fps) else {
      throw MatryoshkaError.invalidArgument(name: "fps", reason: "expected \(Clip.rates), got \(fps)")
    }
    (self.url, self.text, file) = (url, text, AnimatedPNG(fps: fps))
  }

  /// Adds a frame. Throws a ``MatryoshkaError`` if it differs in size from the one before.
  public mutating func append(_ frame: Picture) throws {
    if let first = file.first, !first.hasSize(of: frame) {
      throw MatryoshkaError.invalidPicture(
        reason: "the frame has \(frame.width) x \(frame.height) pixels, expected \(first.width) x \(first.height)")
    }
    file.append(frame)
  }

  /// Writes the file. Throws a ``MatryoshkaError``, also if there are no frames.
  public mutating func finish() throws {
    guard file.first != nil else {
      throw MatryoshkaError.invalidPicture(reason: "a clip needs one frame or more")
    }
    do {
      try Data(file.contents(text: text)).write(to: url, options: .atomic)
    } catch {
      throw MatryoshkaError.fileSystem(path: url.path, reason: "cannot be written (\(error.cause))")
    }
  }
}

/// The parts of an animated PNG (third edition of PNG, https://www.w3.org/TR/png-3/). Every frame is whole
/// and stands for itself, so that equal neighbours stay two frames.
private struct AnimatedPNG {
  let fps: Int
  /// The frame that says how large all are.
  private(set) var first: Picture?
  private var count: UInt32 = 0
  private var sequence: UInt32 = 0
  private var body: [UInt8] = []

  init(fps: Int) { self.fps = fps }

  mutating func append(_ frame: Picture) {
    var control = number() + bigEndian(UInt32(frame.width)) + bigEndian(UInt32(frame.height))
    control += [UInt8](repeating: 0, count: 8)  // at the upper left corner
    control += [0, 1, UInt8(fps >> 8), UInt8(fps & 255)]  // shown for 1 / fps s
    control += [0, 0]  // in place of the frame before
    PNG.append(&body, "fcTL", control)
    if first == nil {
      first = frame
      PNG.append(&body, "IDAT", frame.compressedRows())
    } else {
      PNG.append(&body, "fdAT", number() + frame.compressedRows())
    }
    count += 1
  }

  func contents(text: (key: String, value: String)?) -> [UInt8] {
    guard let first else { return [] }
    var out = PNG.signature
    PNG.append(&out, "IHDR", first.header())
    PNG.append(&out, "acTL", bigEndian(count) + bigEndian(0))  // 0: for ever
    if let text { PNG.append(&out, text: text) }
    out += body
    PNG.append(&out, "IEND", [])
    return out
  }

  /// Control and data of frames are numbered in one sequence.
  private mutating func number() -> [UInt8] {
    defer { sequence += 1 }
    return bigEndian(sequence)
  }
}

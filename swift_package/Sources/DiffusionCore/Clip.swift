/// Pictures of one size that are shown one after the other.
public struct Clip: Sendable, Equatable {
  /// The allowed numbers of frames per second.
  public static let rates = 1...240
  /// In the order in which they are shown; at least one.
  public let frames: [Picture]
  /// Frames per second.
  public let fps: Int

  /// Throws ``MatryoshkaError/invalidPicture(reason:)`` if there are no frames, if they differ in size, or if
  /// `fps` is not within ``rates``.
  public init(frames: [Picture], fps: Int) throws {
    guard let first = frames.first, frames.allSatisfy(first.hasSize) else {
      throw MatryoshkaError.invalidPicture(reason: "a clip needs one frame or more, all of one size")
    }
    guard Clip.rates.contains(fps) else {
      throw MatryoshkaError.invalidPicture(
        reason: "a clip shows \(Clip.rates.lowerBound) to \(Clip.rates.upperBound) frames a second, not \(fps)")
    }
    (self.frames, self.fps) = (frames, fps)
  }

  /// The duration of the clip.
  public var seconds: Double { Double(frames.count) / Double(fps) }

  /// The frame to show at a time; after the last one comes the first one again.
  ///
  /// - Parameter seconds: since any beginning, also before it.
  public func frame(at seconds: Double) -> Picture {
    let position = (seconds * Double(fps)).rounded(.down)
    let index = position.truncatingRemainder(dividingBy: Double(frames.count))
    guard index.isFinite else { return frames[0] }
    return frames[index < 0 ? Int(index) + frames.count : Int(index)]
  }
}

/// Networks see all frames of a clip in one square picture, the canvas: n rows of n frames, in order.
extension Clip {
  /// Cuts a canvas into its frames, as `untiled` in `mdm_apple/diffusion/canvas.py` does. Throws
  /// ``MatryoshkaError/invalidPicture(reason:)`` if so many do not fill it.
  public init(canvas: Picture, frames count: Int, fps: Int) throws {
    let grid = try Clip.grid(of: count)
    guard canvas.width % grid == 0, canvas.height % grid == 0 else {
      throw MatryoshkaError.invalidPicture(
        reason: "\(count) frames do not fill \(canvas.width) x \(canvas.height) pixels")
    }
    let (width, height) = (canvas.width / grid, canvas.height / grid)
    let frames = try (0..<count).map { frame in
      var rgb: [UInt8] = []
      rgb.reserveCapacity(3 * width * height)
      for row in 0..<height {
        let start = 3 * ((frame / grid * height + row) * canvas.width + frame % grid * width)
        rgb += canvas.rgb[start..<start + 3 * width]
      }
      return try Picture(width: width, height: height, rgb: rgb)
    }
    try self.init(frames: frames, fps: fps)
  }

  /// All frames in one picture. Throws ``MatryoshkaError/invalidPicture(reason:)`` if their number is no
  /// square.
  public func canvas() throws -> Picture {
    let grid = try Clip.grid(of: frames.count)
    let (width, height) = (frames[0].width, frames[0].height)
    var rgb: [UInt8] = []
    rgb.reserveCapacity(3 * width * height * frames.count)
    for row in 0..<grid * height {
      let start = 3 * width * (row % height)
      for column in 0..<grid {
        rgb += frames[row / height * grid + column].rgb[start..<start + 3 * width]
      }
    }
    return try Picture(width: grid * width, height: grid * height, rgb: rgb)
  }

  private static func grid(of count: Int) throws -> Int {
    guard let grid = squareRoot(of: count) else {
      throw MatryoshkaError.invalidPicture(reason: "\(count) frames do not fill a square")
    }
    return grid
  }
}

extension Picture {
  /// Whether two pictures have one width and one height.
  package func hasSize(of other: Picture) -> Bool { (width, height) == (other.width, other.height) }
}

/// The root of a square of a whole number from 1 on; nil for other numbers.
func squareRoot(of number: Int) -> Int? {
  guard number >= 1 else { return nil }
  let root = Int(Double(number).squareRoot().rounded())
  return root.multipliedReportingOverflow(by: root) == (number, false) ? root : nil
}

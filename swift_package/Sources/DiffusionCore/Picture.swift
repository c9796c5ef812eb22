import Foundation

/// An 8-bit RGB picture.
public struct Picture: Sendable, Equatable {
  /// Width in pixels.
  public let width: Int
  /// Height in pixels.
  public let height: Int
  /// Red, green, blue, row by row from the top.
  public let rgb: [UInt8]

  /// Throws ``MatryoshkaError/invalidPicture(reason:)`` if size and bytes disagree.
  public init(width: Int, height: Int, rgb: [UInt8]) throws {
    guard width >= 1, height >= 1, Tensor.count(of: [width, height, 3]) == rgb.count else {
      throw MatryoshkaError.invalidPicture(
        reason: "\(rgb.count) bytes are not \(width) x \(height) pixels")
    }
    (self.width, self.height, self.rgb) = (width, height, rgb)
  }

  /// Converts a (1, 3, H, W) tensor: multiplies by `scale`, clips to [-1, 1] and rounds to 8 bits.
  package init(_ tensor: Tensor, scale: Double) throws {
    guard tensor.shape.count == 4, tensor.shape[0] == 1, tensor.shape[1] == 3 else {
      throw MatryoshkaError.invalidPicture(reason: "expected the shape (1, 3, H, W)")
    }
    let (height, width) = (tensor.shape[2], tensor.shape[3])
    let plane = width * height
    let factor = Float(scale)
    let values = tensor.values
    let rgb = [UInt8](unsafeUninitializedCapacity: 3 * plane) { out, filled in
      for channel in 0..<3 {
        for pixel in 0..<plane {
          let value = min(max(values[channel * plane + pixel] * factor, -1), 1)
          // our networks never produce NaN; it would become black
          out[3 * pixel + channel] =
            value.isNaN ? 0 : UInt8(((value + 1) * 127.5).rounded(.toNearestOrEven))
        }
      }
      filled = 3 * plane
    }
    try self.init(width: width, height: height, rgb: rgb)
  }
}

extension Picture: Codable {
  private enum Keys: String, CodingKey {
    case width, height, rgb
  }

  /// Encodes the bytes as they are.
  public func encode(to encoder: any Encoder) throws {
    var container = encoder.container(keyedBy: Keys.self)
    try container.encode(width, forKey: .width)
    try container.encode(height, forKey: .height)
    try container.encode(Data(rgb), forKey: .rgb)
  }

  /// Throws if size and bytes disagree.
  public init(from decoder: any Decoder) throws {
    let container = try decoder.container(keyedBy: Keys.self)
    let rgb = try container.decode(Data.self, forKey: .rgb)
    try self.init(
      width: container.decode(Int.self, forKey: .width),
      height: container.decode(Int.self, forKey: .height), rgb: [UInt8](rgb))
  }
}

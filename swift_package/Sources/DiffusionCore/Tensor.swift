import Foundation

/// An array of numbers in row-major order. Pictures are (1, 3, side, side).
public struct Tensor: Sendable, Equatable {
  /// Lengths of the axes, outermost first.
  public let shape: [Int]
  /// All numbers; the last axis varies fastest.
  public var values: [Float]

  /// Throws ``MatryoshkaError/invalidArgument(name:reason:)`` if count and shape disagree.
  public init(shape: [Int], values: [Float]) throws {
    guard let count = Tensor.count(of: shape), count == values.count else {
      throw MatryoshkaError.invalidArgument(
        name: "values", reason: "\(values.count) numbers do not fill the shape \(shape)")
    }
    (self.shape, self.values) = (shape, values)
  }

  /// A tensor of zeros. Throws like `init(shape:values:)` for shapes that exceed any memory.
  public init(zeros shape: [Int]) throws {
    guard let count = Tensor.count(of: shape), count <= 1 << 32 else {
      throw MatryoshkaError.invalidArgument(name: "shape", reason: "\(shape) is impossible")
    }
    (self.shape, values) = (shape, [Float](repeating: 0, count: count))
  }

  /// A picture of one level: (1, 3, side, side).
  package static func picture(side: Int, values: [Float]) throws -> Tensor {
    try Tensor(shape: [1, 3, side, side], values: values)
  }

  /// Product of the lengths; nil for negative lengths and products that overflow.
  package static func count(of shape: [Int]) -> Int? {
    var count = 1
    for length in shape {
      let (product, overflow) = count.multipliedReportingOverflow(by: length)
      guard length >= 0, !overflow else { return nil }
      count = product
    }
    return count
  }
}

extension Tensor: Codable {
  private enum Keys: String, CodingKey {
    case shape, values
  }

  /// Encodes the values as little-endian bytes, which restores them bit for bit.
  public func encode(to encoder: any Encoder) throws {
    var container = encoder.container(keyedBy: Keys.self)
    try container.encode(shape, forKey: .shape)
    try container.encode(Data(littleEndianBytes(of: values)), forKey: .values)
  }

  /// Throws if bytes and shape disagree.
  public init(from decoder: any Decoder) throws {
    let container = try decoder.container(keyedBy: Keys.self)
    let shape = try container.decode([Int].self, forKey: .shape)
    let data = try container.decode(Data.self, forKey: .values)
    try self.init(shape: shape, values: floats(fromLittleEndian: data))
  }
}

/// The numbers as IEEE single precision bytes, least significant byte first.
package func littleEndianBytes(of values: [Float]) -> [UInt8] {
  [UInt8](unsafeUninitializedCapacity: 4 * values.count) { bytes, filled in
    let raw = UnsafeMutableRawBufferPointer(bytes)
    for (index, value) in values.enumerated() {
      raw.storeBytes(of: value.bitPattern.littleEndian, toByteOffset: 4 * index, as: UInt32.self)
    }
    filled = 4 * values.count
  }
}

/// The inverse. Ignores a remainder of fewer than four bytes.
package func floats<Bytes: ContiguousBytes>(fromLittleEndian bytes: Bytes) -> [Float] {
  bytes.withUnsafeBytes { raw in
    (0..<raw.count / 4).map {
      Float(bitPattern: UInt32(littleEndian: raw.loadUnaligned(fromByteOffset: 4 * $0, as: UInt32.self)))
    }
  }
}

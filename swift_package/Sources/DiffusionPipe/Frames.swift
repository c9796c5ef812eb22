import DiffusionCore
import Foundation

/// Frames of the bundle server's protocol; see docs/serve_bundle.md. Every length is checked.
package enum Frame {
  /// The largest frame, in bytes.
  package static let maximum = 256 << 20

  /// A frame: length, kind and payload.
  package static func bytes(_ kind: Character, _ payload: [UInt8]) throws -> [UInt8] {
    guard payload.count < maximum, let byte = kind.asciiValue else {
      throw MatryoshkaError.serverFailed(reason: "a request of \(payload.count) bytes is too large")
    }
    return word(UInt32(payload.count + 1)) + [byte] + payload
  }

  /// A text as the protocol encodes it.
  package static func text(_ text: String) -> [UInt8] {
    let bytes = Array(text.utf8.prefix(0xFFFF))
    return [UInt8(bytes.count & 255), UInt8(bytes.count >> 8)] + bytes
  }

  /// A tensor as the protocol encodes it.
  package static func tensor(
    _ name: String, _ tensor: Tensor, as type: Manifest.ElementType
  ) -> [UInt8] {
    var out = text(name) + [type == .int32 ? 1 : 0, UInt8(tensor.shape.count)]
    for length in tensor.shape { out += word(UInt32(length)) }
    if type == .int32 {
      for value in tensor.values { out += word(UInt32(bitPattern: Int32(value))) }
    } else {
      out += littleEndianBytes(of: tensor.values)
    }
    return out
  }

  /// A 32-bit number, least significant byte first.
  package static func word(_ value: UInt32) -> [UInt8] {
    [0, 8, 16, 24].map { UInt8(truncatingIfNeeded: value >> UInt32($0)) }
  }
}

/// Reads a payload from front to back.
package struct FrameReader {
  private let bytes: [UInt8]
  private var position = 0

  package init(_ bytes: [UInt8]) { self.bytes = bytes }

  package mutating func number(bytes count: Int) throws -> Int {
    try take(count).reversed().reduce(0) { $0 << 8 | Int($1) }
  }

  package mutating func text() throws -> String {
    guard let text = String(validating: try take(number(bytes: 2)), as: UTF8.self) else {
      throw MatryoshkaError.serverFailed(reason: "it sent a text that is not UTF-8")
    }
    return text
  }

  /// A tensor and its name. Integers become floats.
  package mutating func tensor() throws -> (String, Tensor) {
    let name = try text()
    let (type, rank) = (try number(bytes: 1), try number(bytes: 1))
    guard type <= 1, rank <= 5 else {
      throw MatryoshkaError.serverFailed(reason: "it sent a tensor of type \(type) and rank \(rank)")
    }
    let shape = try (0..<rank).map { _ in try number(bytes: 4) }
    guard let count = Tensor.count(of: shape + [4]) else { throw short }
    let raw = Array(try take(count))
    var values = floats(fromLittleEndian: raw)
    if type == 1 { values = values.map { Float(Int32(bitPattern: $0.bitPattern)) } }
    return (name, try Tensor(shape: shape, values: values))
  }

  package func finish() throws {
    guard position == bytes.count else {
      throw MatryoshkaError.serverFailed(reason: "an answer is longer than announced")
    }
  }

  private var short: MatryoshkaError {
    .serverFailed(reason: "an answer is shorter than announced")
  }

  private mutating func take(_ count: Int) throws -> ArraySlice<UInt8> {
    guard count <= bytes.count - position else { throw short }
    defer { position += count }
    return bytes[position..<position + count]
  }
}

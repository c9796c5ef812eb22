/// Reads the fields of a protocol buffer message one by one.
struct ProtobufReader {
  /// The contents of a field.
  enum Value {
    case varint(UInt64)
    case fixed32(UInt32)
    case bytes(ArraySlice<UInt8>)
    case other
  }

  private let bytes: ArraySlice<UInt8>
  private var position: Int

  init(_ bytes: ArraySlice<UInt8>) {
    self.bytes = bytes
    position = bytes.startIndex
  }

  /// The next field and its number; nil at the end.
  ///
  /// Throws ``MatryoshkaError/invalidTokenizer(reason:)``.
  mutating func next() throws -> (field: Int, value: Value)? {
    guard position < bytes.endIndex else { return nil }
    let key = try varint()
    guard let field = Int(exactly: key >> 3), field >= 1, field < 1 << 29 else { throw damaged }
    switch key & 7 {
    case 0: return (field, .varint(try varint()))
    case 1:
      _ = try take(8)
      return (field, .other)
    case 2:
      guard let length = Int(exactly: try varint()) else { throw damaged }
      return (field, .bytes(try take(length)))
    case 5: return (field, .fixed32(try take(4).reversed().reduce(0) { $0 << 8 | UInt32($1) }))
    default: throw damaged
    }
  }

  private mutating func take(_ count: Int) throws -> ArraySlice<UInt8> {
    guard count <= bytes.endIndex - position else { throw damaged }
    defer { position += count }
    return bytes[position..<position + count]
  }

  private mutating func varint() throws -> UInt64 {
    var value: UInt64 = 0
    for shift in stride(from: UInt64(0), to: 70, by: 7) {
      guard position < bytes.endIndex else { throw damaged }
      let byte = bytes[position]
      position += 1
      value |= UInt64(byte & 0x7F) << shift
      if byte < 0x80 { return value }
    }
    throw damaged
  }

  private var damaged: MatryoshkaError { .invalidTokenizer(reason: "the model file is damaged") }
}

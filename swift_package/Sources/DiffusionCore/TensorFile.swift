import Foundation

/// A safetensors file: an 8-byte length, a JSON header, raw little-endian numbers.
///
/// Opening a file checks that the header describes exactly the bytes that follow. Tensors are copied
/// only on request.
public struct TensorFile: Sendable {
  /// The number types of the format.
  public enum ElementType: String, CaseIterable, Sendable {
    /// Spelled as in the format.
    case F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL

    /// Bytes of one number.
    public var size: Int {
      switch self {
      case .F64, .I64, .U64: 8
      case .F32, .I32, .U32: 4
      case .F16, .BF16, .I16, .U16: 2
      case .I8, .U8, .BOOL: 1
      }
    }
  }

  /// The place of a tensor in the file.
  public struct Entry: Sendable, Equatable {
    /// Its number type.
    public let type: ElementType
    /// Its shape.
    public let shape: [Int]
    /// Its byte range, counted from the first number of the file.
    public let bytes: Range<Int>
  }

  /// Tensors by name.
  public let entries: [String: Entry]
  /// The writer's metadata.
  public let metadata: [String: String]
  private let data: Data
  private let start: Int

  private static let maximumHeader = 32 << 20
  private static let maximumTensors = 200_000

  /// Opens a file. Its numbers are mapped, not read.
  public init(url: URL) throws {
    do {
      try self.init(data: Data(contentsOf: url, options: .mappedIfSafe))
    } catch let error as MatryoshkaError {
      throw error
    } catch {
      throw MatryoshkaError.fileSystem(path: url.path, reason: "cannot be read (\(error.cause))")
    }
  }

  /// Throws ``MatryoshkaError/invalidTensorFile(reason:)`` or, for the header, `invalidJSON`.
  public init(data: Data) throws {
    guard !GitPointer.begins(data) else { throw TensorFile.refusal(GitPointer.reason) }
    guard data.count >= 8 else { throw TensorFile.refusal("has no header") }
    let length = data.withUnsafeBytes { UInt64(littleEndian: $0.loadUnaligned(as: UInt64.self)) }
    guard length <= UInt64(min(data.count - 8, TensorFile.maximumHeader)) else {
      throw TensorFile.refusal("is cut off in its header")
    }
    start = 8 + Int(length)
    let header = data.withUnsafeBytes { [UInt8]($0[8..<8 + Int(length)]) }
    (entries, metadata) = try TensorFile.parse(header)
    self.data = data
    try checkLayout()
  }

  /// A tensor as single precision numbers.
  public func tensor(_ name: String) throws -> Tensor {
    let entry = try entry(name)
    return try Tensor(shape: entry.shape, values: floats(entry.type, entry.bytes))
  }

  /// Rows of a matrix (rows, width) as single precision numbers. Other rows are not read.
  public func rows(_ name: String, _ range: Range<Int>) throws -> [Float] {
    let entry = try entry(name)
    guard entry.shape.count == 2, range.lowerBound >= 0, range.upperBound <= entry.shape[0] else {
      throw TensorFile.refusal("\(name.prefix(80)) has no rows \(range)")
    }
    let width = entry.shape[1] * entry.type.size
    let first = entry.bytes.lowerBound
    return try floats(
      entry.type, first + range.lowerBound * width..<first + range.upperBound * width)
  }

  /// The part of a tensor at these places of its first axes, as single precision numbers; 32-bit whole
  /// numbers are taken as well. The rest is not read.
  package func part(_ name: String, at places: [Int]) throws -> Tensor {
    let entry = try entry(name)
    guard places.count < entry.shape.count,
      zip(places, entry.shape).allSatisfy({ (0..<$1).contains($0) })
    else { throw TensorFile.refusal("\(name.prefix(80)) has no part \(places)") }
    let shape = Array(entry.shape[places.count...])
    let count = entry.type.size * (Tensor.count(of: shape) ?? 0)
    let index = zip(places, entry.shape).reduce(0) { $0 * $1.1 + $1.0 }
    let first = entry.bytes.lowerBound + index * count
    guard entry.type == .I32 else {
      return try Tensor(shape: shape, values: floats(entry.type, first..<first + count))
    }
    let numbers = load(first..<first + count, as: UInt32.self)
    return try Tensor(
      shape: shape, values: numbers.map { Float(Int32(bitPattern: UInt32(littleEndian: $0))) })
  }

  /// A double precision tensor, flat.
  public func doubles(_ name: String) throws -> [Double] {
    let entry = try entry(name, .F64)
    return load(entry.bytes, as: UInt64.self).map { Double(bitPattern: UInt64(littleEndian: $0)) }
  }

  /// A tensor of 64-bit whole numbers, flat.
  public func integers(_ name: String) throws -> [Int64] {
    try load(entry(name, .I64).bytes, as: Int64.self).map { Int64(littleEndian: $0) }
  }

  /// A tensor of bytes, flat.
  public func bytes(_ name: String) throws -> [UInt8] {
    try load(entry(name, .U8).bytes, as: UInt8.self)
  }

  /// The contents of a file that holds these tensors, in this order, in single precision.
  public static func contents(
    _ tensors: [(name: String, tensor: Tensor)], metadata: [String: String] = [:]
  ) -> Data {
    var members: [JSON.Member] = []
    if !metadata.isEmpty {
      let sorted = metadata.sorted { $0.key < $1.key }
      members.append(
        JSON.Member("__metadata__", .object(sorted.map { JSON.Member($0.key, .string($0.value)) })))
    }
    var end = 0
    for (name, tensor) in tensors {
      let begin = end
      end += 4 * tensor.values.count
      members.append(
        JSON.Member(
          name,
          .object([
            JSON.Member("dtype", .string("F32")),
            JSON.Member("shape", .array(tensor.shape.map { .number(String($0)) })),
            JSON.Member("data_offsets", .array([.number(String(begin)), .number(String(end))])),
          ])))
    }
    var header = Array(JSON.object(members).canonical.utf8)
    while header.count % 8 != 0 { header.append(UInt8(ascii: " ")) }
    var out = Data()
    withUnsafeBytes(of: UInt64(header.count).littleEndian) { out.append(contentsOf: $0) }
    out.append(contentsOf: header)
    for (_, tensor) in tensors { out.append(contentsOf: littleEndianBytes(of: tensor.values)) }
    return out
  }

  private func entry(_ name: String, _ type: ElementType? = nil) throws -> Entry {
    guard let entry = entries[name] else {
      throw TensorFile.refusal("has no tensor \(name.prefix(80))")
    }
    guard type == nil || entry.type == type else {
      throw TensorFile.refusal("\(name.prefix(80)) is \(entry.type), expected \(type ?? entry.type)")
    }
    return entry
  }

  private func load<Number>(_ range: Range<Int>, as _: Number.Type) -> [Number] {
    let size = MemoryLayout<Number>.size
    return data.withUnsafeBytes { raw in
      (0..<range.count / size).map {
        raw.loadUnaligned(fromByteOffset: start + range.lowerBound + size * $0, as: Number.self)
      }
    }
  }

  private func floats(_ type: ElementType, _ range: Range<Int>) throws -> [Float] {
    switch type {
    case .F32: load(range, as: UInt32.self).map { Float(bitPattern: UInt32(littleEndian: $0)) }
    case .F64: load(range, as: UInt64.self).map { Float(Double(bitPattern: UInt64(littleEndian: $0))) }
    case .F16: load(range, as: UInt16.self).map { HalfPrecision.float(UInt16(littleEndian: $0)) }
    case .BF16:
      load(range, as: UInt16.self).map { Float(bitPattern: UInt32(UInt16(littleEndian: $0)) << 16) }
    default: throw TensorFile.refusal("has whole numbers where fractions were expected")
    }
  }

  private func checkLayout() throws {
    var end = 0
    for entry in entries.values.sorted(by: {
      ($0.bytes.lowerBound, $0.bytes.upperBound) < ($1.bytes.lowerBound, $1.bytes.upperBound)
    }) {
      guard entry.bytes.lowerBound == end else {
        throw TensorFile.refusal("its tensors overlap or leave a gap at byte \(end)")
      }
      end = entry.bytes.upperBound
    }
    guard end == data.count - start else {
      throw TensorFile.refusal("its header describes \(end) bytes, but \(data.count - start) follow")
    }
  }

  private static func parse(_ header: [UInt8]) throws -> ([String: Entry], [String: String]) {
    guard case .object(let members) = try JSON(parsing: header), members.count <= maximumTensors
    else { throw refusal("its header is not a list of at most \(maximumTensors) tensors") }
    var entries: [String: Entry] = [:]
    var metadata: [String: String] = [:]
    for member in members {
      if member.key == "__metadata__" {
        guard case .object(let said) = member.value else { continue }
        for case let one in said {
          if case .string(let text) = one.value { metadata[one.key] = text }
        }
      } else {
        entries[member.key] = try entry(member)
      }
    }
    return (entries, metadata)
  }

  private static func entry(_ member: JSON.Member) throws -> Entry {
    let name = member.key.prefix(80)
    guard case .object(let fields) = member.value else { throw refusal("\(name) is not an object") }
    var type: ElementType?
    var shape: [Int]?
    var place: [Int]?
    for field in fields {
      switch (field.key, field.value) {
      case ("dtype", .string(let text)): type = ElementType(rawValue: text)
      case ("shape", .array(let numbers)): shape = counts(numbers)
      case ("data_offsets", .array(let numbers)): place = counts(numbers)
      default: throw refusal("\(name) has the unknown field \(field.key.prefix(40))")
      }
    }
    guard let type, let shape, let place, place.count == 2, place[0] <= place[1],
      let count = Tensor.count(of: shape + [type.size]), count == place[1] - place[0]
    else { throw refusal("\(name) has an impossible type, shape or place") }
    return Entry(type: type, shape: shape, bytes: place[0]..<place[1])
  }

  private static func counts(_ values: [JSON]) -> [Int]? {
    guard values.count <= 16 else { return nil }
    var counts: [Int] = []
    for value in values {
      guard case .number(let text) = value, let count = Int(text), (0..<1 << 48).contains(count)
      else { return nil }
      counts.append(count)
    }
    return counts
  }

  private static func refusal(_ reason: String) -> MatryoshkaError {
    .invalidTensorFile(reason: reason)
  }
}

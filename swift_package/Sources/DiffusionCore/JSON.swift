/// JSON exactly as written in a file, with its order of keys and its spelling of numbers.
///
/// Strict: refuses duplicate keys, trailing text, NaN and nesting deeper than ``JSON/maximumDepth``.
/// Numbers keep their spelling so that a digest of the text can be recomputed.
package indirect enum JSON: Equatable, Sendable {
  case null
  case bool(Bool)
  case number(String)
  case string(String)
  case array([JSON])
  case object([Member])

  package struct Member: Equatable, Sendable {
    package let key: String
    package let value: JSON

    package init(_ key: String, _ value: JSON) {
      (self.key, self.value) = (key, value)
    }
  }

  package static let maximumDepth = 64

  /// Parses UTF-8 text. Throws ``MatryoshkaError/invalidJSON(offset:reason:)``.
  package init(parsing bytes: [UInt8]) throws {
    var parser = JSONParser(bytes)
    self = try parser.document()
  }

  /// With sorted keys and no spaces, as Python's `json.dumps(..., sort_keys=True,
  /// separators=(",", ":"), ensure_ascii=False)` writes it.
  package var canonical: String {
    var out = ""
    write(into: &out)
    return out
  }

  private func write(into out: inout String) {
    switch self {
    case .null: out += "null"
    case .bool(let value): out += value ? "true" : "false"
    case .number(let spelling): out += spelling
    case .string(let text): JSON.quote(text, into: &out)
    case .array(let values):
      out += "["
      for (index, value) in values.enumerated() {
        if index > 0 { out += "," }
        value.write(into: &out)
      }
      out += "]"
    case .object(let members):
      let sorted = members.sorted { $0.key.unicodeScalars.lexicographicallyPrecedes($1.key.unicodeScalars) }
      out += "{"
      for (index, member) in sorted.enumerated() {
        if index > 0 { out += "," }
        JSON.quote(member.key, into: &out)
        out += ":"
        member.value.write(into: &out)
      }
      out += "}"
    }
  }

  private static func quote(_ text: String, into out: inout String) {
    out += "\""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"": out += "\\\""
      case "\\": out += "\\\\"
      case "\n": out += "\\n"
      case "\r": out += "\\r"
      case "\t": out += "\\t"
      case "\u{8}": out += "\\b"
      case "\u{c}": out += "\\f"
      case _ where scalar.value < 0x20:
        let hex = String(scalar.value, radix: 16)
        out += "\\u" + String(repeating: "0", count: 4 - hex.count) + hex
      default: out.unicodeScalars.append(scalar)
      }
    }
    out += "\""
  }
}

/// A recursive-descent parser over bytes.
private struct JSONParser {
  private let bytes: [UInt8]
  private var position = 0
  private var depth = 0

  init(_ bytes: [UInt8]) { self.bytes = bytes }

  mutating func document() throws -> JSON {
    let value = try self.value()
    skipSpace()
    guard position == bytes.count else { throw refusal("text after the end") }
    return value
  }

  private func refusal(_ reason: String) -> MatryoshkaError {
    .invalidJSON(offset: position, reason: reason)
  }

  private mutating func skipSpace() {
    while position < bytes.count, [0x20, 0x0A, 0x0D, 0x09].contains(bytes[position]) {
      position += 1
    }
  }

  private func peek() -> UInt8? { position < bytes.count ? bytes[position] : nil }

  private mutating func take(_ byte: Character) throws {
    guard let next = peek(), next == byte.asciiValue else { throw refusal("expected \(byte)") }
    position += 1
  }

  private mutating func value() throws -> JSON {
    skipSpace()
    switch peek() {
    case UInt8(ascii: "{"): return try nested { try $0.object() }
    case UInt8(ascii: "["): return try nested { try $0.array() }
    case UInt8(ascii: "\""): return .string(try string())
    case UInt8(ascii: "t"): return try word("true", .bool(true))
    case UInt8(ascii: "f"): return try word("false", .bool(false))
    case UInt8(ascii: "n"): return try word("null", .null)
    default: return .number(try number())
    }
  }

  private mutating func nested(_ body: (inout JSONParser) throws -> JSON) throws -> JSON {
    depth += 1
    guard depth <= JSON.maximumDepth else { throw refusal("nested too deeply") }
    defer { depth -= 1 }
    position += 1
    return try body(&self)
  }

  private mutating func word(_ text: String, _ value: JSON) throws -> JSON {
    let end = position + text.utf8.count
    guard end <= bytes.count, bytes[position..<end].elementsEqual(text.utf8) else {
      throw refusal("unknown word")
    }
    position = end
    return value
  }

  private mutating func object() throws -> JSON {
    var members: [JSON.Member] = []
    var seen: Set<String> = []
    skipSpace()
    if peek() == UInt8(ascii: "}") {
      position += 1
      return .object([])
    }
    while true {
      skipSpace()
      let key = try string()
      // Swift strings compare canonically equivalent keys as equal, so those are refused too.
      guard seen.insert(key).inserted else { throw refusal("duplicate key \(key.prefix(80))") }
      skipSpace()
      try take(":")
      members.append(JSON.Member(key, try value()))
      skipSpace()
      if peek() == UInt8(ascii: ",") {
        position += 1
      } else {
        try take("}")
        return .object(members)
      }
    }
  }

  private mutating func array() throws -> JSON {
    var values: [JSON] = []
    skipSpace()
    if peek() == UInt8(ascii: "]") {
      position += 1
      return .array([])
    }
    while true {
      values.append(try value())
      skipSpace()
      if peek() == UInt8(ascii: ",") {
        position += 1
      } else {
        try take("]")
        return .array(values)
      }
    }
  }

  private mutating func number() throws -> String {
    let start = position
    if peek() == UInt8(ascii: "-") { position += 1 }
    if peek() == UInt8(ascii: "0") {
      position += 1
    } else {
      try digits()
    }
    if peek() == UInt8(ascii: ".") {
      position += 1
      try digits()
    }
    if let letter = peek(), letter == UInt8(ascii: "e") || letter == UInt8(ascii: "E") {
      position += 1
      if let sign = peek(), sign == UInt8(ascii: "+") || sign == UInt8(ascii: "-") {
        position += 1
      }
      try digits()
    }
    guard position - start <= 64 else { throw refusal("a number of more than 64 characters") }
    return String(decoding: bytes[start..<position], as: UTF8.self)
  }

  private mutating func digits() throws {
    let start = position
    while let byte = peek(), byte >= UInt8(ascii: "0"), byte <= UInt8(ascii: "9") { position += 1 }
    guard position > start else { throw refusal("expected a value") }
  }

  private mutating func string() throws -> String {
    try take("\"")
    var text: [UInt8] = []
    while let byte = peek() {
      position += 1
      switch byte {
      case UInt8(ascii: "\""):
        guard let string = String(validating: text, as: UTF8.self) else {
          throw refusal("not UTF-8")
        }
        return string
      case UInt8(ascii: "\\"): text += try escape()
      case 0..<0x20: throw refusal("a control character in a string")
      default: text.append(byte)
      }
    }
    throw refusal("a string without an end")
  }

  private mutating func escape() throws -> [UInt8] {
    guard let byte = peek() else { throw refusal("a string without an end") }
    position += 1
    switch byte {
    case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return [byte]
    case UInt8(ascii: "b"): return [0x08]
    case UInt8(ascii: "f"): return [0x0C]
    case UInt8(ascii: "n"): return [0x0A]
    case UInt8(ascii: "r"): return [0x0D]
    case UInt8(ascii: "t"): return [0x09]
    case UInt8(ascii: "u"): return try unicode()
    default: throw refusal("unknown escape")
    }
  }

  private mutating func unicode() throws -> [UInt8] {
    var code = try hex()
    if (0xD800..<0xDC00).contains(code) {  // the first half of a surrogate pair
      try take("\\")
      try take("u")
      let low = try hex()
      guard (0xDC00..<0xE000).contains(low) else { throw refusal("half a surrogate pair") }
      code = 0x10000 + (code - 0xD800) << 10 + (low - 0xDC00)
    }
    guard let scalar = Unicode.Scalar(code) else { throw refusal("half a surrogate pair") }
    return Array(String(Character(scalar)).utf8)
  }

  private mutating func hex() throws -> UInt32 {
    let end = position + 4
    guard end <= bytes.count else { throw refusal("a string without an end") }
    var code: UInt32 = 0
    for byte in bytes[position..<end] {
      guard let digit = Character(Unicode.Scalar(byte)).hexDigitValue else {
        throw refusal("expected four hexadecimal digits")
      }
      code = code << 4 | UInt32(digit)
    }
    position = end
    return code
  }
}

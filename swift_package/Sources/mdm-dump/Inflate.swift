import DiffusionCore

/// Decompresses zlib streams (RFC 1950, RFC 1951) whose length is known in advance.
struct Inflate {
  private let bytes: [UInt8]
  private var position = 2
  private var bits: UInt32 = 0
  private var bitCount: UInt32 = 0
  private var out: [UInt8] = []
  private let expected: Int

  /// Returns exactly `expected` bytes. Refuses any other length and a wrong checksum.
  static func zlib(_ bytes: [UInt8], expected: Int) throws -> [UInt8] {
    guard bytes.count >= 6, bytes[0] & 15 == 8, (Int(bytes[0]) << 8 | Int(bytes[1])) % 31 == 0,
      bytes[1] & 32 == 0
    else { throw refusal("its compressed data has no header") }
    var stream = Inflate(bytes, expected)
    try stream.blocks()
    guard stream.out.count == expected else { throw refusal("it has too few pixels") }
    let tail = bytes.suffix(4).reduce(0) { $0 << 8 | UInt32($1) }
    guard tail == PNG.adler32(stream.out) else { throw refusal("the checksum of its pixels is wrong") }
    return stream.out
  }

  private init(_ bytes: [UInt8], _ expected: Int) {
    (self.bytes, self.expected) = (bytes, expected)
    out.reserveCapacity(min(expected, 1032 * bytes.count))  // the most that deflate can expand
  }

  private static func refusal(_ reason: String) -> MatryoshkaError { .invalidPicture(reason: reason) }

  private mutating func blocks() throws {
    var last = false
    while !last {
      last = try take(1) == 1
      switch try take(2) {
      case 0: try stored()
      case 1: try coded(.fixedLiterals, .fixedDistances)
      case 2:
        let (literals, distances) = try tables()
        try coded(literals, distances)
      default: throw Inflate.refusal("a block has an unknown kind")
      }
    }
  }

  private mutating func take(_ count: UInt32) throws -> UInt32 {
    while bitCount < count {
      guard position < bytes.count else { throw Inflate.refusal("its compressed data is cut off") }
      bits |= UInt32(bytes[position]) << bitCount
      position += 1
      bitCount += 8
    }
    defer {
      bits >>= count
      bitCount -= count
    }
    return bits & (1 << count - 1)
  }

  private mutating func stored() throws {
    bits = 0  // the rest of the byte is padding; whole bytes are never read ahead
    bitCount = 0
    let length = Int(try take(16))
    guard try take(16) == UInt32(~length & 0xFFFF) else { throw Inflate.refusal("a block is damaged") }
    guard length <= bytes.count - position, length <= expected - out.count else {
      throw Inflate.refusal("a block is too long")
    }
    out += bytes[position..<position + length]
    position += length
  }

  private mutating func tables() throws -> (HuffmanCode, HuffmanCode) {
    let literals = Int(try take(5)) + 257
    let distances = Int(try take(5)) + 1
    let count = Int(try take(4)) + 4
    var lengths = [UInt8](repeating: 0, count: 19)
    let order = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15]
    for place in order.prefix(count) { lengths[place] = UInt8(try take(3)) }
    let code = try HuffmanCode(lengths)
    var all: [UInt8] = []
    while all.count < literals + distances {
      switch try symbol(code) {
      case let length where length < 16: all.append(UInt8(length))
      case 16:
        guard let previous = all.last else { throw Inflate.refusal("its code lengths are damaged") }
        all += [UInt8](repeating: previous, count: Int(try take(2)) + 3)
      case 17: all += [UInt8](repeating: 0, count: Int(try take(3)) + 3)
      default: all += [UInt8](repeating: 0, count: Int(try take(7)) + 11)
      }
    }
    guard all.count == literals + distances else { throw Inflate.refusal("its code lengths are damaged") }
    return (try HuffmanCode(Array(all[..<literals])), try HuffmanCode(Array(all[literals...])))
  }

  private mutating func symbol(_ code: HuffmanCode) throws -> Int {
    var (value, first, index) = (0, 0, 0)
    for count in code.counts.dropFirst() {  // one more bit per round
      value |= Int(try take(1))
      if value - first < count { return Int(code.symbols[index + value - first]) }
      index += count
      first = (first + count) << 1
      value <<= 1
    }
    throw Inflate.refusal("a code is unknown")
  }

  private mutating func coded(_ literals: HuffmanCode, _ distances: HuffmanCode) throws {
    while true {
      let value = try symbol(literals)
      if value == 256 { return }
      if value < 256 {
        guard out.count < expected else { throw Inflate.refusal("it has too many pixels") }
        out.append(UInt8(value))
        continue
      }
      guard value - 257 < 29 else { throw Inflate.refusal("a length is unknown") }
      let (base, extra) = Inflate.lengths[value - 257]
      let length = base + Int(try take(extra))
      let place = try symbol(distances)
      guard place < 30 else { throw Inflate.refusal("a distance is unknown") }
      let (start, more) = Inflate.distances[place]
      let distance = start + Int(try take(more))
      guard distance <= out.count, length <= expected - out.count else {
        throw Inflate.refusal("a copy starts before the data")
      }
      for _ in 0..<length { out.append(out[out.count - distance]) }
    }
  }

  private static let lengths: [(Int, UInt32)] = {
    var table: [(Int, UInt32)] = []
    var base = 3
    for code in 0..<28 {
      let extra = UInt32(code < 8 ? 0 : code / 4 - 1)
      table.append((base, extra))
      base += 1 << Int(extra)
    }
    return table + [(258, 0)]
  }()

  private static let distances: [(Int, UInt32)] = {
    var table: [(Int, UInt32)] = []
    var base = 1
    for code in 0..<30 {
      let extra = UInt32(code < 4 ? 0 : code / 2 - 1)
      table.append((base, extra))
      base += 1 << Int(extra)
    }
    return table
  }()
}

/// A canonical prefix code: the number of codes of each length, and the symbols in order.
struct HuffmanCode {
  let counts: [Int]
  let symbols: [UInt16]

  /// Throws if there are more codes than their lengths allow.
  init(_ lengths: [UInt8]) throws {
    guard let code = HuffmanCode(checked: lengths) else {
      throw MatryoshkaError.invalidPicture(reason: "its code lengths are damaged")
    }
    self = code
  }

  private init?(checked lengths: [UInt8]) {
    var counts = [Int](repeating: 0, count: 16)
    for length in lengths where length > 0 { counts[Int(length)] += 1 }
    var left = 1
    for count in counts.dropFirst() {
      left = left << 1 - count
      if left < 0 { return nil }
    }
    self.counts = counts
    symbols = (1...15).flatMap { length in
      lengths.indices.filter { lengths[$0] == length }.map { UInt16($0) }
    }
  }

  private init(counts: [Int], symbols: [UInt16]) { (self.counts, self.symbols) = (counts, symbols) }

  static let fixedLiterals = HuffmanCode(
    counts: [0, 0, 0, 0, 0, 0, 0, 24, 152, 112, 0, 0, 0, 0, 0, 0],
    symbols: Array(256...279) + Array(0...143) + Array(280...287) + Array(144...255))
  static let fixedDistances = HuffmanCode(
    counts: [0, 0, 0, 0, 0, 30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], symbols: Array(0...29))
}

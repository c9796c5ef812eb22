/// Writes pictures as PNG files (ISO/IEC 15948) with zlib's stored blocks, uncompressed.
extension Picture {
  /// The contents of a PNG file.
  ///
  /// - Parameter text: a key and a text stored in the file, as `mdm sample` stores its recipes.
  public func png(text: (key: String, value: String)? = nil) -> [UInt8] {
    var out = PNG.signature
    PNG.append(&out, "IHDR", header())
    if let text { PNG.append(&out, text: text) }
    PNG.append(&out, "IDAT", compressedRows())
    PNG.append(&out, "IEND", [])
    return out
  }

  /// The size, and 8 bits of red, green and blue, not interlaced.
  func header() -> [UInt8] {
    bigEndian(UInt32(width)) + bigEndian(UInt32(height)) + [8, 2, 0, 0, 0]
  }

  /// A zlib stream of all rows.
  func compressedRows() -> [UInt8] { PNG.stored(rows()) }

  /// Every row, preceded by the filter type "none".
  private func rows() -> [UInt8] {
    var rows: [UInt8] = []
    rows.reserveCapacity(height * (3 * width + 1))
    for row in 0..<height {
      rows.append(0)
      rows += rgb[row * 3 * width..<(row + 1) * 3 * width]
    }
    return rows
  }
}

/// The parts of a file. Reading, which tests do, needs some of them as well.
package enum PNG {
  /// The first bytes of every file.
  package static let signature: [UInt8] = [0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A]

  static func append(_ out: inout [UInt8], _ kind: String, _ body: [UInt8]) {
    out += bigEndian(UInt32(body.count))
    let start = out.count
    out += Array(kind.utf8) + body
    out += bigEndian(checksum(out[start...]))
  }

  static func append(_ out: inout [UInt8], text: (key: String, value: String)) {
    append(&out, "iTXt", Array(text.key.utf8.prefix(79)) + [0, 0, 0, 0, 0] + Array(text.value.utf8))
  }

  /// A zlib stream of stored blocks.
  static func stored(_ data: [UInt8]) -> [UInt8] {
    var out: [UInt8] = [0x78, 0x01]
    var position = 0
    repeat {
      let length = min(65535, data.count - position)
      let last: UInt8 = position + length == data.count ? 1 : 0
      out += [last, UInt8(length & 255), UInt8(length >> 8)]
      out += [UInt8(~length & 255), UInt8(~length >> 8 & 255)]
      out += data[position..<position + length]
      position += length
    } while position < data.count
    return out + bigEndian(adler32(data))
  }

  /// CRC-32 as PNG defines it.
  package static func checksum(_ bytes: ArraySlice<UInt8>) -> UInt32 {
    ~bytes.reduce(~0) { crcTable[Int(($0 ^ UInt32($1)) & 255)] ^ $0 >> 8 }
  }

  /// The checksum that ends a zlib stream.
  package static func adler32(_ bytes: [UInt8]) -> UInt32 {
    var (a, b): (UInt32, UInt32) = (1, 0)
    for byte in bytes {
      a = (a + UInt32(byte)) % 65521
      b = (b + a) % 65521
    }
    return b << 16 | a
  }

  private static let crcTable: [UInt32] = (0..<256).map { byte in
    (0..<8).reduce(UInt32(byte)) { crc, _ in crc & 1 == 0 ? crc >> 1 : crc >> 1 ^ 0xEDB8_8320 }
  }
}

package func bigEndian(_ value: UInt32) -> [UInt8] {
  [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: value >> UInt32($0)) }
}

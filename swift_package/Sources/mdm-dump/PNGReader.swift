import DiffusionCore

/// Reads non-interlaced PNG files with 8 bits per channel. Transparency is ignored.
extension Picture {
  /// The most pixels of a picture that is read.
  static let maximumPixels = 89_000_000

  /// Decodes a file. Throws ``MatryoshkaError/invalidPicture(reason:)``.
  init(png bytes: [UInt8]) throws {
    var reader = PNGReader(bytes)
    self = try reader.picture()
  }
}

private struct PNGReader {
  private let bytes: [UInt8]
  private var position = 0
  private var palette: [UInt8] = []

  init(_ bytes: [UInt8]) { self.bytes = bytes }

  mutating func picture() throws -> Picture {
    guard bytes.starts(with: PNG.signature) else { throw refusal("not a PNG file") }
    position = PNG.signature.count
    let (kind, header) = try chunk()
    guard kind == "IHDR", header.count == 13 else { throw refusal("its header is missing") }
    let size = Array(header)
    let (width, height) = (number(size[0..<4]), number(size[4..<8]))
    guard width >= 1, height >= 1, width <= 1 << 20, height <= 1 << 20,
      width * height <= Picture.maximumPixels
    else { throw refusal("the size \(width) x \(height) is not supported") }
    guard size[8] == 8, size[10...] == [0, 0, 0], let channels = [0: 1, 2: 3, 3: 1, 4: 2, 6: 4][size[9]]
    else { throw refusal("only non-interlaced files with 8 bits per channel are supported") }
    let compressed = try body()
    let expected = height * (width * channels + 1)
    var rows = try Inflate.zlib(compressed, expected: expected)
    try unfilter(&rows, width * channels, channels)
    let usesPalette = size[9] == 3
    return try Picture(width: width, height: height, rgb: rgb(rows, width, channels, usesPalette))
  }

  private mutating func body() throws -> [UInt8] {
    var data: [UInt8] = []
    while true {
      let (kind, content) = try chunk()
      switch kind {
      case "IDAT": data += content
      case "PLTE": palette = Array(content)
      case "IEND": return data
      default: continue
      }
    }
  }

  private mutating func chunk() throws -> (String, ArraySlice<UInt8>) {
    guard bytes.count - position >= 12 else { throw refusal("it is cut off") }
    let length = number(bytes[position..<position + 4])
    guard length <= bytes.count - position - 12 else { throw refusal("it is cut off") }
    let end = position + 8 + length
    guard number(bytes[end..<end + 4]) == Int(PNG.checksum(bytes[position + 4..<end])) else {
      throw refusal("a checksum is wrong")
    }
    let kind = String(decoding: bytes[position + 4..<position + 8], as: UTF8.self)
    defer { position = end + 4 }
    return (kind, bytes[position + 8..<end])
  }

  /// Undoes the prediction from the pixels to the left and above, row by row.
  private func unfilter(_ rows: inout [UInt8], _ width: Int, _ step: Int) throws {
    let stride = width + 1
    for start in Swift.stride(from: 0, to: rows.count, by: stride) {
      let filter = rows[start]
      guard filter <= 4 else { throw refusal("a row has the unknown filter \(filter)") }
      if filter == 0 { continue }
      for i in 1...width {
        let left = i > step ? rows[start + i - step] : 0
        let up = start > 0 ? rows[start - stride + i] : 0
        let corner = i > step && start > 0 ? rows[start - stride + i - step] : 0
        switch filter {
        case 1: rows[start + i] &+= left
        case 2: rows[start + i] &+= up
        case 3: rows[start + i] &+= UInt8((Int(left) + Int(up)) / 2)
        default: rows[start + i] &+= paeth(left, up, corner)
        }
      }
    }
  }

  private func paeth(_ left: UInt8, _ up: UInt8, _ corner: UInt8) -> UInt8 {
    let guess = Int(left) + Int(up) - Int(corner)
    let (a, b, c) = (abs(guess - Int(left)), abs(guess - Int(up)), abs(guess - Int(corner)))
    return a <= b && a <= c ? left : b <= c ? up : corner
  }

  private func rgb(_ rows: [UInt8], _ width: Int, _ channels: Int, _ fromPalette: Bool) throws -> [UInt8] {
    var out: [UInt8] = []
    out.reserveCapacity(rows.count / channels * 3)
    for start in Swift.stride(from: 0, to: rows.count, by: width * channels + 1) {
      for pixel in 0..<width {
        let place = start + 1 + pixel * channels
        if fromPalette {
          let color = 3 * Int(rows[place])
          guard color + 3 <= palette.count else { throw refusal("a color is not in its palette") }
          out += palette[color..<color + 3]
        } else if channels < 3 {
          out += [rows[place], rows[place], rows[place]]
        } else {
          out += rows[place..<place + 3]
        }
      }
    }
    return out
  }

  private func number(_ bytes: ArraySlice<UInt8>) -> Int { bytes.reduce(0) { $0 << 8 | Int($1) } }

  private func refusal(_ reason: String) -> MatryoshkaError { .invalidPicture(reason: reason) }
}

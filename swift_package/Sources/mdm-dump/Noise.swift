import DiffusionCore

/// Writes normals as float64 and, from a second generator, as float32, in raw little-endian bytes.
enum Noise {
  static func normals(key: [UInt32], count: Int, out: String) throws {
    var first = MersenneTwister(key: key)
    var second = MersenneTwister(key: key)
    // Two uneven draws, so that a kept second number crosses from one to the next.
    let odd = count / 3 | 1
    let doubles = first.normals(odd) + first.normals(count - odd)
    let floats = second.floatNormals(odd) + second.floatNormals(count - odd)
    let bytes = doubles.flatMap { value in
      (0..<8).map { UInt8(truncatingIfNeeded: value.bitPattern >> UInt64(8 * $0)) }
    }
    try write(bytes + littleEndianBytes(of: floats), to: out)
  }
}

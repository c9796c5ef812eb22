/// Half precision in software, because `Float16` is missing on some build machines.
package enum HalfPrecision {
  /// The number encoded by 16 bits (IEEE 754 binary16).
  package static func float(_ bits: UInt16) -> Float {
    let sign = UInt32(bits & 0x8000) << 16
    let exponent = UInt32(bits >> 10 & 0x1F)
    let fraction = UInt32(bits & 0x3FF)
    switch exponent {
    case 0:
      let magnitude = Float(fraction) * 0x1p-24
      return sign == 0 ? magnitude : -magnitude
    case 31: return Float(bitPattern: sign | 0x7F80_0000 | fraction << 13)
    default: return Float(bitPattern: sign | (exponent + 112) << 23 | fraction << 13)
    }
  }

  /// The nearest 16-bit encoding, ties to even. Numbers that are too large become infinite.
  package static func bits(_ value: Float) -> UInt16 {
    let bits = value.bitPattern
    let sign = UInt16(truncatingIfNeeded: bits >> 16) & 0x8000
    let magnitude = bits & 0x7FFF_FFFF
    if magnitude > 0x7F80_0000 { return sign | 0x7E00 }
    if magnitude >= 0x477F_F000 { return sign | 0x7C00 }
    if magnitude < 0x3880_0000 {  // below the smallest normal number: in steps of 2^-24
      let steps = (Float(bitPattern: magnitude) * 0x1p24).rounded(.toNearestOrEven)
      return sign | UInt16(steps)
    }
    let rounded = magnitude + 0xFFF + (magnitude >> 13 & 1)
    return sign | UInt16(truncatingIfNeeded: (rounded - 0x3800_0000) >> 13)
  }

  /// Encodes numbers as 16 bits each. The same as ``bits(_:)`` number by number, but without branches, so
  /// that the compiler makes vector instructions of it where the places are next to each other.
  ///
  /// - Parameters:
  ///   - start: byte of the first place.
  ///   - step: bytes from one place to the next.
  package static func store(
    _ values: UnsafeBufferPointer<Float>, in bytes: UnsafeMutableRawBufferPointer, at start: Int,
    every step: Int
  ) {
    guard !values.isEmpty, let base = bytes.baseAddress else { return }
    precondition(step >= 0 && start >= 0 && start + (values.count - 1) * step + 2 <= bytes.count)
    guard step == 2 else {
      for (index, value) in values.enumerated() {
        base.storeBytes(of: bits(value), toByteOffset: start + index * step, as: UInt16.self)
      }
      return
    }
    let place = base + start
    for index in values.indices {
      place.storeBytes(of: straightBits(values[index]), toByteOffset: 2 * index, as: UInt16.self)
    }
  }

  /// Decodes numbers of 16 bits each; the inverse of `store`, and the same as ``float(_:)``.
  package static func load(
    _ values: UnsafeMutableBufferPointer<Float>, from bytes: UnsafeRawBufferPointer, at start: Int,
    every step: Int
  ) {
    guard !values.isEmpty, let base = bytes.baseAddress else { return }
    precondition(step >= 0 && start >= 0 && start + (values.count - 1) * step + 2 <= bytes.count)
    guard step == 2 else {
      for index in values.indices {
        values[index] = float(base.loadUnaligned(fromByteOffset: start + index * step, as: UInt16.self))
      }
      return
    }
    let place = base + start
    for index in values.indices {
      values[index] = straightFloat(place.loadUnaligned(fromByteOffset: 2 * index, as: UInt16.self))
    }
  }

  /// ``bits(_:)`` with choices in place of branches.
  @inline(__always)
  private static func straightBits(_ value: Float) -> UInt16 {
    let bits = value.bitPattern
    let magnitude = bits & 0x7FFF_FFFF
    let normal = (magnitude &+ 0xFFF &+ (magnitude >> 13 & 1) &- 0x3800_0000) >> 13
    // Adding one half leaves the multiple of 2^-24 in the low bits, rounded by the processor.
    let small = (Float(bitPattern: magnitude) + 0.5).bitPattern &- 0x3F00_0000
    let finite = magnitude < 0x3880_0000 ? small : normal
    let special: UInt32 = magnitude > 0x7F80_0000 ? 0x7E00 : 0x7C00
    let rest = magnitude >= 0x477F_F000 ? special : finite
    return UInt16(truncatingIfNeeded: bits >> 16 & 0x8000 | rest)
  }

  /// ``float(_:)`` with choices in place of branches.
  @inline(__always)
  private static func straightFloat(_ bits: UInt16) -> Float {
    let magnitude = UInt32(bits & 0x7FFF) << 13
    let normal = magnitude &+ 0x3800_0000
    let special = magnitude | 0x7F80_0000
    // With the exponent of 2^-14 it is 2^-14 too large, and what remains is exact.
    let small = (Float(bitPattern: magnitude | 0x3880_0000) - 0x1p-14).bitPattern
    let finite = magnitude < 0x0080_0000 ? small : normal
    let rest = magnitude >= 0x0F80_0000 ? special : finite
    return Float(bitPattern: UInt32(bits & 0x8000) << 16 | rest)
  }
}

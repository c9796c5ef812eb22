import DiffusionCore
import Testing

@Suite struct HalfPrecisionTests {
  @Test func everyFiniteHalfComesBack() {
    for bits in UInt16.min...UInt16.max where bits & 0x7C00 != 0x7C00 {
      #expect(HalfPrecision.bits(HalfPrecision.float(bits)) == bits)
    }
  }

  @Test func roundingGoesToTheNearestAndOnTiesToEven() {
    #expect(HalfPrecision.bits(1 + 0x1p-11) == 0x3C00)
    #expect(HalfPrecision.bits(1 + 0x1.8p-10) == 0x3C02)
    #expect(HalfPrecision.bits(65519) == 0x7BFF)
    #expect(HalfPrecision.bits(65520) == 0x7C00)
    #expect(HalfPrecision.bits(-.infinity) == 0xFC00)
    #expect(HalfPrecision.float(HalfPrecision.bits(.nan)).isNaN)
    #expect(HalfPrecision.bits(0x1p-25) == 0)
    #expect(HalfPrecision.bits(0x1.8p-25) == 1)
  }

  /// The conversions of whole rows, with vectors, against those of single numbers.
  @Test(arguments: [2, 6]) func rowsAreConvertedLikeSingleNumbers(step: Int) {
    let halves = Array(UInt16.min...UInt16.max)
    var bytes = [UInt8](repeating: 0, count: step * halves.count + 2)
    bytes.withUnsafeMutableBytes { bytes in
      for (index, half) in halves.enumerated() {
        bytes.storeBytes(of: half, toByteOffset: 2 + step * index, as: UInt16.self)
      }
    }
    var floats = [Float](repeating: 0, count: halves.count)
    floats.withUnsafeMutableBufferPointer { floats in
      bytes.withUnsafeBytes { HalfPrecision.load(floats, from: $0, at: 2, every: step) }
    }
    #expect(zip(floats, halves).allSatisfy { $0.bitPattern == HalfPrecision.float($1).bitPattern })

    // 2^20 numbers of every exponent, with the borders of the cases and their neighbours.
    let borders: [UInt32] = [0, 0x3300_0000, 0x3380_0000, 0x3880_0000, 0x477F_F000, 0x7F80_0000, 0x7FC0_0000]
    var patterns = borders.flatMap { [$0, $0 &+ 1, $0 &- 1, $0 ^ 0x8000_0000] }
    patterns += (0..<1 << 20).map { UInt32($0) &* 4093 }
    let values = patterns.map(Float.init(bitPattern:))
    var stored = [UInt8](repeating: 0, count: step * values.count + 2)
    stored.withUnsafeMutableBytes { stored in
      values.withUnsafeBufferPointer { HalfPrecision.store($0, in: stored, at: 2, every: step) }
    }
    let found = stored.withUnsafeBytes { stored in
      values.indices.map { stored.loadUnaligned(fromByteOffset: 2 + step * $0, as: UInt16.self) }
    }
    #expect(zip(found, values).allSatisfy { $0 == HalfPrecision.bits($1) })
  }
}

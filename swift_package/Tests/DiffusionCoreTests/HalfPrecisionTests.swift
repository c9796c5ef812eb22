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
}

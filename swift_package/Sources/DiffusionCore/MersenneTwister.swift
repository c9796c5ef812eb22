import Foundation

/// `numpy.random.RandomState(key)`: MT19937 seeded by an array, and its legacy normals.
///
/// Sources: Matsumoto & Nishimura 1998 (init_by_array); Marsaglia's polar method, which keeps its
/// second number for the next call.
package struct MersenneTwister: Sendable {
  private static let size = 624
  private var state: [UInt32]
  private var position = MersenneTwister.size
  private var kept: Double?

  /// Seeds the generator with one or more numbers, like `RandomState([a, b])`.
  package init(key: [UInt32]) {
    var mt = [UInt32](repeating: 0, count: MersenneTwister.size)
    mt[0] = 19_650_218
    for i in 1..<mt.count {
      mt[i] = 1_812_433_253 &* (mt[i - 1] ^ mt[i - 1] >> 30) &+ UInt32(i)
    }
    var (i, j) = (1, 0)
    for _ in 0..<max(mt.count, key.count) {
      mt[i] = (mt[i] ^ (mt[i - 1] ^ mt[i - 1] >> 30) &* 1_664_525) &+ key[j] &+ UInt32(j)
      i += 1
      j = (j + 1) % key.count
      if i == mt.count { (mt[0], i) = (mt[mt.count - 1], 1) }
    }
    for _ in 1..<mt.count {
      mt[i] = (mt[i] ^ (mt[i - 1] ^ mt[i - 1] >> 30) &* 1_566_083_941) &- UInt32(i)
      i += 1
      if i == mt.count { (mt[0], i) = (mt[mt.count - 1], 1) }
    }
    mt[0] = 0x8000_0000
    state = mt
  }

  /// The next `count` numbers of `standard_normal`.
  package mutating func normals(_ count: Int) -> [Double] {
    [Double](unsafeUninitializedCapacity: count) { out, filled in
      fill(count) { out[$0] = $1 }
      filled = count
    }
  }

  /// The same, each rounded to single precision.
  package mutating func floatNormals(_ count: Int) -> [Float] {
    [Float](unsafeUninitializedCapacity: count) { out, filled in
      fill(count) { out[$0] = Float($1) }
      filled = count
    }
  }

  @inline(__always)
  private mutating func fill(_ count: Int, _ put: (Int, Double) -> Void) {
    var done = 0
    if let value = kept, count > 0 {
      put(0, value)
      kept = nil
      done = 1
    }
    var index = position
    var rest: Double?
    state.withUnsafeMutableBufferPointer { mt in
      while done < count {
        var x1 = 0.0
        var x2 = 0.0
        var r2 = 0.0
        repeat {
          x1 = 2.0 * MersenneTwister.uniform(mt, &index) - 1.0
          x2 = 2.0 * MersenneTwister.uniform(mt, &index) - 1.0
          r2 = x1 * x1 + x2 * x2
        } while r2 >= 1.0 || r2 == 0.0
        let factor = (-2.0 * log(r2) / r2).squareRoot()
        put(done, factor * x2)
        done += 1
        if done < count {
          put(done, factor * x1)
          done += 1
        } else {
          rest = factor * x1
        }
      }
    }
    position = index
    if let rest { kept = rest }
  }

  /// 53 random bits in [0, 1).
  @inline(__always)
  private static func uniform(
    _ mt: UnsafeMutableBufferPointer<UInt32>, _ index: inout Int
  ) -> Double {
    let high = Double(next(mt, &index) >> 5)
    let low = Double(next(mt, &index) >> 6)
    return (high * 67_108_864.0 + low) / 9_007_199_254_740_992.0
  }

  @inline(__always)
  private static func next(
    _ mt: UnsafeMutableBufferPointer<UInt32>, _ index: inout Int
  ) -> UInt32 {
    if index == size {
      refill(mt)
      index = 0
    }
    var y = mt[index]
    index += 1
    y ^= y >> 11
    y ^= y << 7 & 0x9d2c_5680
    y ^= y << 15 & 0xefc6_0000
    return y ^ y >> 18
  }

  private static func refill(_ mt: UnsafeMutableBufferPointer<UInt32>) {
    @inline(__always)
    func mix(_ i: Int, _ following: Int, _ far: Int) {
      let y = (mt[i] & 0x8000_0000) | (mt[following] & 0x7fff_ffff)
      mt[i] = mt[far] ^ (y >> 1) ^ (y & 1 == 0 ? 0 : 0x9908_b0df)
    }
    for i in 0..<227 { mix(i, i + 1, i + 397) }
    for i in 227..<623 { mix(i, i + 1, i - 227) }
    mix(623, 0, 396)
  }
}

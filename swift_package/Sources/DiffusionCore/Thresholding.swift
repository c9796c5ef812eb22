/// Keeps clean estimates within the range of pictures.
///
/// Source of dynamic thresholding: Saharia et al. 2022 (arXiv:2205.11487).
package enum Thresholding {
  /// - Parameter signal: the factor that turns x0 into a picture in [-1, 1].
  package static func apply(_ kind: Manifest.Threshold, to x0: inout [Float], signal: Double) {
    let scale = Float(signal)
    switch kind {
    case .none: return
    case .clip: map(&x0) { min(max($0 * scale, -1), 1) / scale }
    case .dynamic: stretch(&x0, scale, quantile: 0.995, bound: 100)
    case .dynamicIf: stretch(&x0, scale, quantile: 0.95, bound: 1.5)
    }
  }

  private static func stretch(_ x0: inout [Float], _ scale: Float, quantile: Float, bound: Float) {
    map(&x0) { $0 * scale }
    let limit = min(max(absoluteQuantile(of: x0, quantile), 1), bound)
    map(&x0) { min(max($0, -limit), limit) / limit / scale }
  }

  /// Quantile of |x|, linearly interpolated in single precision like `numpy.quantile`.
  package static func absoluteQuantile(of x: [Float], _ quantile: Float) -> Float {
    guard !x.isEmpty else { return 0 }
    let place = Float(x.count - 1) * quantile
    let below = min(Int(place.rounded(.down)), x.count - 1)
    let above = min(below + 1, x.count - 1)
    let (low, high) = neighbours(x, below, above)
    let share = place - Float(below)
    let gap = high - low
    return share >= 0.5 ? high - gap * (1 - share) : low + gap * share
  }

  /// The values at two neighbouring ranks of |x|.
  ///
  /// The bit patterns of non-negative numbers sort like the numbers. Two counts, of the upper 16 bits
  /// and then of the lower 15, therefore find a rank without sorting.
  private static func neighbours(_ x: [Float], _ below: Int, _ above: Int) -> (Float, Float) {
    var counts = [Int](repeating: 0, count: 1 << 16)
    for value in x { counts[Int((value.bitPattern & 0x7FFF_FFFF) >> 15)] += 1 }
    let low = ranked(x, counts, below)
    return (low, above == below ? low : ranked(x, counts, above))
  }

  private static func ranked(_ x: [Float], _ counts: [Int], _ rank: Int) -> Float {
    let (upper, rest) = locate(counts, rank)
    var fine = [Int](repeating: 0, count: 1 << 15)
    for value in x {
      let bits = value.bitPattern & 0x7FFF_FFFF
      if Int(bits >> 15) == upper { fine[Int(bits & 0x7FFF)] += 1 }
    }
    return Float(bitPattern: UInt32(upper) << 15 | UInt32(locate(fine, rest).0))
  }

  /// The bin that contains a rank, and the rank within that bin.
  private static func locate(_ counts: [Int], _ rank: Int) -> (Int, Int) {
    var rest = rank
    for (bin, count) in counts.enumerated() {
      if rest < count { return (bin, rest) }
      rest -= count
    }
    return (counts.count - 1, 0)
  }

  @inline(__always)
  private static func map(_ x: inout [Float], _ body: (Float) -> Float) {
    x.withUnsafeMutableBufferPointer { x in
      for i in x.indices { x[i] = body(x[i]) }
    }
  }
}

/// The one documented stream of noise, so that a seed gives the same picture in every runtime.
///
/// Level k, counted from the innermost = 0, of seed s reads
/// `numpy.random.RandomState([s, k]).standard_normal` in (C, H, W) order, rounded to single
/// precision: the initial noise first, then one draw per step. No level touches another's stream.
public struct NoiseStream: Sendable {
  private let sides: [Int]
  private var states: [MersenneTwister]
  /// The number of calls of ``draw()`` so far.
  public private(set) var draws = 0

  /// - Parameter sides: side of each level, highest first. A run that stops early names fewer levels.
  public init(seed: UInt32, sides: [Int]) {
    self.sides = sides
    states = sides.indices.map { MersenneTwister(key: [seed, UInt32(sides.count - 1 - $0)]) }
  }

  /// The next normals of every level, highest first: (1, 3, side, side) each.
  public mutating func draw() throws -> [Tensor] {
    draws += 1
    return try sides.indices.map { level in
      let side = sides[level]
      return try .picture(side: side, values: states[level].floatNormals(3 * side * side))
    }
  }

  /// Advances the stream past its first `draws` draws.
  package mutating func skip(to count: Int) {
    while draws < count {
      draws += 1
      for level in sides.indices { _ = states[level].floatNormals(3 * sides[level] * sides[level]) }
    }
  }
}

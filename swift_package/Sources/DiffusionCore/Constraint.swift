import Foundation

/// What is known of a picture before it is made, level by level: `mdm_apple/sampling/constraint.py`.
package struct Constraint: Sendable {
  /// Of each level, highest first.
  let levels: [Known]

  /// What is known of a level.
  enum Known: Sendable {
    case held(Held)
    case averages(Averages)
  }

  /// Puts what is known into clean estimates.
  package func estimate(_ x0: inout [Tensor]) {
    for (level, known) in levels.enumerated() {
      switch known {
      case .held(let held): held.estimate(&x0[level].values)
      case .averages(let averages): averages.estimate(&x0[level].values)
      }
    }
  }

  /// Puts the known pixels, at a step's noise, into the states before it.
  package func replace(_ states: inout [Tensor], alphaBars: [Double]) {
    for (level, known) in levels.enumerated() {
      if case .held(let held) = known { held.replace(&states[level].values, alphaBars[level]) }
    }
  }

  /// Puts what is known into finished pictures in [-1, 1].
  package func finish(_ pictures: inout [Tensor]) {
    for (level, known) in levels.enumerated() {
      switch known {
      case .held(let held): held.finish(&pictures[level].values)
      case .averages(let averages): averages.finish(&pictures[level].values)
      }
    }
  }
}

/// Known pixels of a level.
struct Held: Sendable {
  private let side: Int
  private let signal: Float
  /// 1 where nothing is known, 0 where a pixel is, one plane.
  private let free: [Float]
  /// Pictures in [-1, 1], weighted by what `free` leaves.
  private let pixels: [Float]
  private let known: [Float]
  private let noise: [Float]
  private let rings: [[Float]]

  /// - Parameters:
  ///   - pixels: three planes in [-1, 1], 0 where nothing is known.
  ///   - noise: the level's first draw.
  ///   - signal: what the level's image is divided by.
  init(side: Int, free: [Float], pixels: [Float], noise: [Float], signal: Double) {
    (self.side, self.free, self.pixels, self.noise) = (side, free, pixels, noise)
    let signal = Float(signal)
    self.signal = signal
    known = pixels.map { $0 / signal }
    let width = min(Held.mostRings, max(1, side / Held.ringShare))
    rings = Held.rings(around: free.map { $0 == 0 ? 1 : 0 }, side: side, count: width)
  }

  private static let ringShare = 8
  private static let mostRings = 32

  /// Weights that extend values outwards, a ring of pixels at a time.
  private static func rings(around fixed: [Float], side: Int, count: Int) -> [[Float]] {
    var (rings, filled) = ([[Float]](), fixed)
    while rings.count < count {
      let near = Planes.smoothed(filled, side: side)
      let ring = near.indices.map { near[$0] > 0 && filled[$0] == 0 }
      if !ring.contains(true) { break }
      rings.append(near.indices.map { ring[$0] ? 1 / near[$0] : 0 })
      for pixel in ring.indices where ring[pixel] { filled[pixel] += 1 }
    }
    return rings
  }

  private func isFixed(_ pixel: Int) -> Bool { free[pixel] == 0 }

  func estimate(_ x0: inout [Float]) {
    let plane = side * side
    if !rings.isEmpty {
      var lacks = x0.indices.map { isFixed($0 % plane) ? known[$0] - x0[$0] : 0 }
      for (number, weights) in rings.enumerated() {
        let near = Planes.smoothed(lacks, side: side)
        let fade = Float(1 - Double(number + 1) / Double(rings.count + 1))
        for i in x0.indices {
          let ring = near[i] * weights[i % plane]
          lacks[i] += ring
          x0[i] += ring * fade
        }
      }
    }
    for i in x0.indices { x0[i] = x0[i] * free[i % plane] + known[i] }
  }

  func replace(_ x: inout [Float], _ alphaBar: Double) {
    let (alpha, sigma) = (Float(pow(alphaBar, 0.5)), Float(pow(1 - alphaBar, 0.5)))
    for i in x.indices where isFixed(i % (side * side)) { x[i] = alpha * known[i] + sigma * noise[i] }
  }

  func finish(_ picture: inout [Float]) {
    for i in picture.indices where isFixed(i % (side * side)) { picture[i] = pixels[i] }
  }
}

/// Known averages of the squares of a level.
struct Averages: Sendable {
  private let averages: [Float]
  /// Side of the averages.
  private let side: Int
  private let factor: Int
  private let signal: Float

  /// - Parameter averages: three planes in [-1, 1].
  init(_ averages: [Float], side: Int, factor: Int, signal: Double) {
    (self.averages, self.side, self.factor, self.signal) = (averages, side, factor, Float(signal))
  }

  private static let shifts = 4

  func estimate(_ x0: inout [Float]) {
    for i in x0.indices { x0[i] *= signal }
    project(&x0)
    for i in x0.indices { x0[i] /= signal }
  }

  func finish(_ picture: inout [Float]) {
    project(&picture)
    for i in picture.indices { picture[i] = clipped(picture[i]) }
  }

  private func clipped(_ value: Float) -> Float { min(max(value, -1), 1) }

  /// Shifts squares and clips them; what clipped pixels lack is taken from the room of the others.
  private func project(_ x: inout [Float]) {
    let large = side * factor
    for i in x.indices { x[i] = clipped(x[i]) }
    for _ in 0..<Averages.shifts {
      let now = Planes.pooled(x, side: large, factor: factor)
      let gap = averages.indices.map { averages[$0] - now[$0] }
      let all = Planes.repeated(gap, side: side, factor: factor)
      for i in x.indices { x[i] = clipped(x[i] + all[i]) }
    }
    let now = Planes.pooled(x, side: large, factor: factor)
    let up = now.indices.map { share(averages[$0] - now[$0], 1 - now[$0]) }
    let down = now.indices.map { share(now[$0] - averages[$0], 1 + now[$0]) }
    let (ups, downs) = (
      Planes.repeated(up, side: side, factor: factor), Planes.repeated(down, side: side, factor: factor)
    )
    for i in x.indices { x[i] = x[i] + ups[i] * (1 - x[i]) - downs[i] * (1 + x[i]) }
  }

  private func share(_ gap: Float, _ room: Float) -> Float { min(max(gap / max(room, 1e-6), 0), 1) }
}

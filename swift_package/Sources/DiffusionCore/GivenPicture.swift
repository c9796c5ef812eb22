import Foundation

/// A request's picture as sampling needs it: `mdm_apple/sampling/given_picture.py`.
package struct GivenPicture: Sendable {
  private let image: Picture
  private let free: [Float]?
  private let strength: Double
  private let sides: [Int]
  private let signals: [Double]

  /// Throws ``MatryoshkaError/invalidArgument(name:reason:)``; nil if the request begins with noise alone.
  ///
  /// - Parameters:
  ///   - sides: of the levels that run, highest first.
  ///   - signals: what their images are divided by.
  package init?(_ request: PictureRequest, sides: [Int], signals: [Double]) throws {
    func refuse(_ name: String, _ reason: String) -> MatryoshkaError {
      .invalidArgument(name: name, reason: reason)
    }
    guard let image = request.image else {
      for (name, isGiven) in [
        ("strength", request.strength != nil), ("mask", request.mask != nil),
        ("level", request.level != nil),
      ] where isGiven {
        throw refuse(name, "belongs to a picture; give image")
      }
      return nil
    }
    let side = request.level ?? sides[0]
    guard sides.contains(side), image.width == side, image.height == side else {
      throw refuse(
        "image", "expected \(side) x \(side) pixels, a level of \(sides), got \(image.width) x \(image.height)")
    }
    let isSmall = side < sides[0]
    guard !isSmall || (request.mask == nil && request.strength == nil) else {
      throw refuse("level", "a picture to enlarge takes neither a mask nor a strength")
    }
    strength = request.strength ?? (isSmall || request.mask != nil ? 1 : 0.6)
    guard strength > 0, strength <= 1 else {
      throw refuse("strength", "expected above 0, up to 1, got \(strength)")
    }
    if strength == 1, !isSmall, request.mask == nil { return nil }
    free = try request.mask.map { mask in
      guard mask.width == side, mask.height == side else {
        throw refuse("mask", "expected the size of the picture, got \(mask.width) x \(mask.height)")
      }
      let white = (0..<side * side).map { mask.luma($0) >= 128 }
      guard white.contains(true) else { throw refuse("mask", "has no white in it") }
      return white.map { $0 ? 1 : 0 }
    }
    (self.image, self.sides, self.signals) = (image, sides, signals)
  }

  /// What a recipe says of it, under its names there.
  package var recipe: [(name: String, value: JSON)] {
    var members: [(name: String, value: JSON)] = [
      ("image", .string(SHA256.hex(of: image.rgb))), ("strength", .number(strength.description)),
    ]
    if let free { members.append(("mask", .string(SHA256.hex(of: free.map { UInt8($0) })))) }
    if image.width < sides[0] { members.append(("level", .number(image.width.description))) }
    return members
  }

  /// How many of the first steps are left out.
  package func begin(steps: Int) -> Int { steps - max(1, Int(strength * Double(steps) + 0.5)) }

  /// How many of a student's starts are left out. Refuses a strength at which it has none.
  package func begin(starts: [Int], table: Int) throws -> Int {
    let known = [1] + starts.dropFirst().map { (Double($0) / Double(table) * 1000).rounded() / 1000 }
    guard let index = known.firstIndex(where: { abs($0 - strength) < 1e-3 }) else {
      throw MatryoshkaError.invalidArgument(
        name: "strength", reason: "this student begins at \(known) only, got \(strength)")
    }
    return index
  }

  /// The states to begin with: of a start from a picture, its noisy levels.
  package func states(noise: [Tensor], alphaBars: [Double]) throws -> [Tensor] {
    guard strength < 1 else { return noise }
    let levels = pyramid(planes, from: sides[0], to: sides)
    return try noise.indices.map { level in
      let signal = Float(signals[level])
      let alpha = Float(pow(alphaBars[level], 0.5))
      let sigma = Float(pow(1 - alphaBars[level], 0.5))
      let (picture, eps) = (levels[level], noise[level].values)
      return try .picture(
        side: sides[level],
        values: picture.indices.map { alpha * (picture[$0] / signal) + sigma * eps[$0] })
    }
  }

  /// What is known of each level; nil where nothing is.
  package func constraint(noise: [Tensor]) -> Constraint? {
    let side = image.width
    guard free != nil || side < sides[0] else { return nil }
    let free = free ?? [Float](repeating: 0, count: side * side)
    let planes = planes
    let own = sides.filter { $0 <= side }
    let masks = pyramid(free, from: side, to: own)
    let kept = planes.indices.map { planes[$0] * (1 - free[$0 % (side * side)]) }
    let values = pyramid(kept, from: side, to: own)
    let first = sides.count - own.count
    return Constraint(
      levels: sides.indices.map { level in
        if level < first {
          let factor = sides[level] / side
          return .averages(Averages(planes, side: side, factor: factor, signal: signals[level]))
        }
        return .held(
          Held(
            side: sides[level], free: masks[level - first], pixels: values[level - first],
            noise: noise[level].values, signal: signals[level]))
      })
  }

  /// The picture as three planes in [-1, 1].
  private var planes: [Float] {
    let plane = image.width * image.height
    return (0..<3 * plane).map { Float(image.rgb[3 * ($0 % plane) + $0 / plane]) / 127.5 - 1 }
  }

  private func pyramid(_ highest: [Float], from side: Int, to sides: [Int]) -> [[Float]] {
    var (out, last, lastSide) = ([[Float]](), highest, side)
    for side in sides {
      if side < lastSide { last = Planes.pooled(last, side: lastSide, factor: lastSide / side) }
      out.append(last)
      lastSide = side
    }
    return out
  }
}

extension Picture {
  /// The brightness of a pixel, 0 to 255, as Pillow computes it.
  fileprivate func luma(_ pixel: Int) -> Int {
    let (red, green, blue) = (Int(rgb[3 * pixel]), Int(rgb[3 * pixel + 1]), Int(rgb[3 * pixel + 2]))
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
  }
}

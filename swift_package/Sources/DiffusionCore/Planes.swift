/// Square images of several channels, as the arithmetic of constraints needs them.
///
/// The order of additions is that of NumPy (`mdm_apple/diffusion/ops.py`), so that both round alike.
enum Planes {
  /// Averages of squares of `factor` x `factor` pixels: first along rows, then over the rows.
  static func pooled(_ x: [Float], side: Int, factor: Int) -> [Float] {
    let small = side / factor
    let planes = x.count / (side * side)
    var out = [Float](repeating: 0, count: planes * small * small)
    for plane in 0..<planes {
      for row in 0..<small {
        for column in 0..<small {
          var sum: Float = 0
          for i in 0..<factor {
            let start = plane * side * side + (row * factor + i) * side + column * factor
            var line: Float = 0
            for j in 0..<factor { line += x[start + j] }
            sum += line
          }
          out[(plane * small + row) * small + column] = sum / Float(factor * factor)
        }
      }
    }
    return out
  }

  /// Every pixel of images of `side` becomes a square of `factor` x `factor`.
  static func repeated(_ x: [Float], side: Int, factor: Int) -> [Float] {
    let large = side * factor
    let planes = x.count / (side * side)
    var out = [Float](repeating: 0, count: planes * large * large)
    for plane in 0..<planes {
      for row in 0..<large {
        for column in 0..<large {
          let source = (plane * side + row / factor) * side + column / factor
          out[(plane * large + row) * large + column] = x[source]
        }
      }
    }
    return out
  }

  /// The average with the neighbours, weights 1 2 1 both ways; beyond the border are zeros.
  static func smoothed(_ x: [Float], side: Int) -> [Float] {
    let planes = x.count / (side * side)
    var out = x
    for plane in 0..<planes {
      let start = plane * side * side
      func at(_ row: Int, _ column: Int) -> Float {
        (0..<side).contains(row) ? x[start + row * side + column] : 0
      }
      for row in 0..<side {
        let line = (0..<side).map { at(row - 1, $0) + 2 * at(row, $0) + at(row + 1, $0) }
        for column in 0..<side {
          let left = column > 0 ? line[column - 1] : 0
          let right = column + 1 < side ? line[column + 1] : 0
          out[start + row * side + column] = (left + 2 * line[column] + right) / 16
        }
      }
    }
    return out
  }
}

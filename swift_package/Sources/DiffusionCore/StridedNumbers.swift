/// Numbers in memory that belongs to a framework. Its rows may be padded, so every access uses strides.
package enum StridedNumbers {
  /// Writes numbers in row-major order into an array of that shape.
  ///
  /// - Parameter strides: distances between neighbours along each axis, counted in numbers.
  package static func store(
    _ values: [Float], as type: Manifest.ElementType, in bytes: UnsafeMutableRawBufferPointer,
    shape: [Int], strides: [Int]
  ) {
    values.withUnsafeBufferPointer { values in
      for row in Rows(shape, strides) {
        let values = UnsafeBufferPointer(rebasing: values[row.values])
        switch type {
        case .fp16: HalfPrecision.store(values, in: bytes, at: 2 * row.start, every: 2 * row.step)
        case .fp32:
          for (column, value) in values.enumerated() {
            let place = 4 * (row.start + column * row.step)
            bytes.storeBytes(of: value, toByteOffset: place, as: Float.self)
          }
        case .int32:
          for (column, value) in values.enumerated() {
            let place = 4 * (row.start + column * row.step)
            bytes.storeBytes(of: Int32(value), toByteOffset: place, as: Int32.self)
          }
        }
      }
    }
  }

  /// Reads an array of that shape into `values`, which has a place for each number; the inverse of
  /// `store`.
  package static func load(
    _ values: UnsafeMutableBufferPointer<Float>, as type: Manifest.ElementType,
    from bytes: UnsafeRawBufferPointer, shape: [Int], strides: [Int]
  ) {
    guard type == .fp16 else {
      switch type {
      case .int32: load(values, from: bytes, shape, strides, Int32.self) { Float($0) }
      default: load(values, from: bytes, shape, strides, Float.self) { $0 }
      }
      return
    }
    for row in Rows(shape, strides) {
      HalfPrecision.load(
        UnsafeMutableBufferPointer(rebasing: values[row.values]), from: bytes, at: 2 * row.start,
        every: 2 * row.step)
    }
  }

  /// The same for numbers of any type.
  package static func load<Number>(
    _ values: UnsafeMutableBufferPointer<Float>, from bytes: UnsafeRawBufferPointer, _ shape: [Int],
    _ strides: [Int], _ number: Number.Type, _ float: (Number) -> Float
  ) {
    let size = MemoryLayout<Number>.size
    for row in Rows(shape, strides) {
      for (column, index) in row.values.enumerated() {
        let place = size * (row.start + column * row.step)
        values[index] = float(bytes.loadUnaligned(fromByteOffset: place, as: number))
      }
    }
  }
}

/// The rows of an array, in row-major order.
private struct Rows: Sequence, IteratorProtocol {
  /// Where the numbers of a row lie.
  struct Row {
    /// In a tensor.
    let values: Range<Int>
    /// The first one in the array, counted in numbers, and the distance between two.
    let start: Int, step: Int
  }

  private let shape: [Int]
  private let strides: [Int]
  private let count: Int
  private var row = 0

  init(_ shape: [Int], _ strides: [Int]) {
    (self.shape, self.strides) = (shape, strides)
    count = shape.contains(0) ? 0 : shape.dropLast().reduce(1, *)
  }

  mutating func next() -> Row? {
    guard row < count, let width = shape.last, let step = strides.last else { return nil }
    var (rest, start) = (row, 0)
    for axis in shape.indices.dropLast().reversed() {
      start += rest % shape[axis] * strides[axis]
      rest /= shape[axis]
    }
    defer { row += 1 }
    return Row(values: row * width..<(row + 1) * width, start: start, step: step)
  }
}

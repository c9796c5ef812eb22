#if canImport(CoreML) || COREML_SHIM
  import DiffusionCore
  import Foundation

  #if COREML_SHIM
    import CoreMLShim
  #elseif canImport(CoreML)
    import CoreML
  #endif

  /// Converts tensors to and from Core ML's arrays. Rows may be padded, so every access uses strides.
  package enum MultiArrays {
    /// Throws ``MatryoshkaError/packageFailed(package:reason:)`` if the shape is not the declared one.
    ///
    /// - Parameter used: an array to fill again if it has the right shape and type. Only our own arrays
    ///   may be given: what Core ML puts out may belong to a model.
    package static func array(
      _ tensor: Tensor, as feature: Manifest.Feature, reusing used: MLMultiArray? = nil
    ) throws -> MLMultiArray {
      guard tensor.shape == feature.shape else {
        throw MatryoshkaError.packageFailed(
          package: feature.name, reason: "expected the shape \(feature.shape), got \(tensor.shape)")
      }
      let type = type(feature.dtype)
      let array: MLMultiArray
      if let used, used.dataType == type, used.shape.map(\.intValue) == feature.shape {
        array = used
      } else {
        array = try MLMultiArray(shape: feature.shape.map { NSNumber(value: $0) }, dataType: type)
      }
      array.withUnsafeMutableBytes { bytes, strides in
        tensor.values.withUnsafeBufferPointer { values in
          for row in Rows(feature.shape, strides) {
            let values = UnsafeBufferPointer(rebasing: values[row.values])
            switch feature.dtype {
            case .fp16:
              HalfPrecision.store(values, in: bytes, at: 2 * row.start, every: 2 * row.step)
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
      return array
    }

    /// An array as a tensor. Refuses types of numbers that no bundle declares.
    ///
    /// - Parameter name: of the feature, for the refusal.
    package static func tensor(_ array: MLMultiArray, named name: String) throws -> Tensor {
      let shape = array.shape.map(\.intValue)
      let strides = array.strides.map(\.intValue)
      let type = array.dataType
      guard [.float16, .float32, .int32, .double].contains(type) else {
        throw MatryoshkaError.packageFailed(
          package: name, reason: "has numbers of a type that is not known here (\(type.rawValue))")
      }
      let values = [Float](unsafeUninitializedCapacity: shape.reduce(1, *)) { out, filled in
        array.withUnsafeBytes { bytes in
          for row in Rows(shape, strides) {
            let out = UnsafeMutableBufferPointer(rebasing: out[row.values])
            func load<Number>(_ size: Int, _ number: Number.Type, _ float: (Number) -> Float) {
              for column in out.indices {
                let place = size * (row.start + column * row.step)
                out[column] = float(bytes.loadUnaligned(fromByteOffset: place, as: number))
              }
            }
            switch type {
            case .float16: HalfPrecision.load(out, from: bytes, at: 2 * row.start, every: 2 * row.step)
            case .float32: load(4, Float.self) { $0 }
            case .int32: load(4, Int32.self) { Float($0) }
            default: load(8, Double.self) { Float($0) }
            }
          }
        }
        filled = out.count
      }
      return try Tensor(shape: shape, values: values)
    }

    private static func type(_ dtype: Manifest.ElementType) -> MLMultiArrayDataType {
      switch dtype {
      case .fp16: .float16
      case .fp32: .float32
      case .int32: .int32
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
#endif

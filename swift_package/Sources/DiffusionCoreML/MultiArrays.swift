#if canImport(CoreML) || COREML_SHIM
  import DiffusionCore
  import Foundation

  #if canImport(CoreML)
    import CoreML
  #else
    import CoreMLShim
  #endif

  /// Converts tensors to and from Core ML's arrays. Rows may be padded, so every access uses strides.
  package enum MultiArrays {
    /// Throws ``MatryoshkaError/packageFailed(package:reason:)`` if the shape is not the declared one.
    package static func array(_ tensor: Tensor, as feature: Manifest.Feature) throws -> MLMultiArray {
      guard tensor.shape == feature.shape else {
        throw MatryoshkaError.packageFailed(
          package: feature.name, reason: "expected the shape \(feature.shape), got \(tensor.shape)")
      }
      let array = try MLMultiArray(
        shape: feature.shape.map { NSNumber(value: $0) }, dataType: type(feature.dtype))
      array.withUnsafeMutableBytes { bytes, strides in
        walk(feature.shape, strides) { index, place in
          let value = tensor.values[index]
          switch feature.dtype {
          case .fp16:
            bytes.storeBytes(of: HalfPrecision.bits(value), toByteOffset: 2 * place, as: UInt16.self)
          case .fp32: bytes.storeBytes(of: value, toByteOffset: 4 * place, as: Float.self)
          case .int32: bytes.storeBytes(of: Int32(value), toByteOffset: 4 * place, as: Int32.self)
          }
        }
      }
      return array
    }

    package static func tensor(_ array: MLMultiArray) throws -> Tensor {
      let shape = array.shape.map(\.intValue)
      var tensor = try Tensor(zeros: shape)
      let strides = array.strides.map(\.intValue)
      let type = array.dataType
      array.withUnsafeBytes { bytes in
        walk(shape, strides) { index, place in
          switch type {
          case .float16:
            let bits = bytes.loadUnaligned(fromByteOffset: 2 * place, as: UInt16.self)
            tensor.values[index] = HalfPrecision.float(bits)
          case .float32:
            tensor.values[index] = bytes.loadUnaligned(fromByteOffset: 4 * place, as: Float.self)
          case .int32:
            let value = bytes.loadUnaligned(fromByteOffset: 4 * place, as: Int32.self)
            tensor.values[index] = Float(value)
          default:
            let value = bytes.loadUnaligned(fromByteOffset: 8 * place, as: Double.self)
            tensor.values[index] = Float(value)
          }
        }
      }
      return tensor
    }

    private static func type(_ dtype: Manifest.ElementType) -> MLMultiArrayDataType {
      switch dtype {
      case .fp16: .float16
      case .fp32: .float32
      case .int32: .int32
      }
    }

    /// Visits every number: its index in row-major order and its place, counted in numbers.
    @inline(__always)
    private static func walk(_ shape: [Int], _ strides: [Int], _ body: (Int, Int) -> Void) {
      guard let width = shape.last, let step = strides.last, width > 0 else { return }
      let rows = shape.dropLast().reduce(1, *)
      for row in 0..<rows {
        var (rest, start) = (row, 0)
        for axis in shape.indices.dropLast().reversed() {
          start += rest % shape[axis] * strides[axis]
          rest /= shape[axis]
        }
        for column in 0..<width { body(row * width + column, start + column * step) }
      }
    }
  }
#endif

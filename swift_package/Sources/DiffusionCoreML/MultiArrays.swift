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
        StridedNumbers.store(
          tensor.values, as: feature.dtype, in: bytes, shape: feature.shape, strides: strides)
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
          func load(_ type: Manifest.ElementType) {
            StridedNumbers.load(out, as: type, from: bytes, shape: shape, strides: strides)
          }
          switch type {
          case .float16: load(.fp16)
          case .float32: load(.fp32)
          case .int32: load(.int32)
          default: StridedNumbers.load(out, from: bytes, shape, strides, Double.self) { Float($0) }
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
#endif

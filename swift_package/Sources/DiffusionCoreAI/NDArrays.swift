#if canImport(CoreAI) || COREAI_SHIM
  import DiffusionCore

  #if COREAI_SHIM
    import CoreAIShim
  #elseif canImport(CoreAI)
    import CoreAI
  #endif

  /// Converts tensors to and from Core AI's arrays. Rows may be padded, so every access uses strides.
  @available(macOS 27, iOS 27, tvOS 27, watchOS 27, visionOS 27, *)
  package enum NDArrays {
    /// An array in the layout that a function prefers. Interleaved layouts have strides of another
    /// meaning; in their place Core AI takes plain rows, which it then copies.
    package static func empty(_ descriptor: NDArrayDescriptor) -> NDArray {
      guard descriptor.interleaveLayout == nil else {
        return NDArray(shape: descriptor.shape, scalarType: descriptor.scalarType)
      }
      return NDArray(descriptor: descriptor)
    }

    /// Whether an array can hold a feature.
    package static func fits(_ array: NDArray, _ feature: Manifest.Feature) -> Bool {
      array.shape == feature.shape && array.scalarType == type(feature.dtype)
    }

    /// Writes a tensor into an array that fits.
    package static func store(
      _ tensor: Tensor, as feature: Manifest.Feature, in array: inout NDArray
    ) {
      let (shape, strides) = (array.shape, array.strides)
      let count = bytes(shape, strides, feature.dtype)
      // Not by views of Float16, a type that Macs with Intel processors lack.
      array.mutableRawView().withUnsafeMutableBytes { pointer, _, _ in
        StridedNumbers.store(
          tensor.values, as: feature.dtype,
          in: UnsafeMutableRawBufferPointer(start: pointer, count: count), shape: shape, strides: strides)
      }
    }

    /// An array as a tensor. Refuses types of numbers that no bundle declares.
    ///
    /// - Parameter name: of the feature, for the refusal.
    package static func tensor(_ array: NDArray, named name: String) throws -> Tensor {
      let (shape, strides) = (array.shape, array.strides)
      guard let type = Manifest.ElementType.allCases.first(where: { type($0) == array.scalarType }) else {
        throw MatryoshkaError.packageFailed(
          package: name, reason: "has numbers of a type that is not known here (\(array.scalarType))")
      }
      let size = bytes(shape, strides, type)
      let values = [Float](unsafeUninitializedCapacity: shape.reduce(1, *)) { out, filled in
        array.rawView().withUnsafeBytes { pointer, _, _ in
          StridedNumbers.load(
            out, as: type, from: UnsafeRawBufferPointer(start: pointer, count: size), shape: shape,
            strides: strides)
        }
        filled = out.count
      }
      return try Tensor(shape: shape, values: values)
    }

    /// Core AI's name of a type of numbers.
    package static func type(_ dtype: Manifest.ElementType) -> NDArray.ScalarType {
      switch dtype {
      case .fp16: .float16
      case .fp32: .float32
      case .int32: .int32
      }
    }

    /// From the first number of an array to its last.
    private static func bytes(_ shape: [Int], _ strides: [Int], _ dtype: Manifest.ElementType) -> Int {
      guard !shape.contains(0) else { return 0 }
      let last = zip(shape, strides).reduce(0) { $0 + ($1.0 - 1) * $1.1 }
      return (last + 1) * (dtype == .fp16 ? 2 : 4)
    }
  }
#endif

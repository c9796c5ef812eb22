// Running a function, as the adapters do; see CoreAIShim.swift.

/// https://developer.apple.com/documentation/coreai/inferencefunction
public struct InferenceFunction: Sendable {
  private let program: Program

  init(_ program: Program) { self.program = program }

  public var descriptor: InferenceFunctionDescriptor { program.descriptor }

  /// https://developer.apple.com/documentation/coreai/inferencefunction/mutableviews
  public struct MutableViews: ~Copyable, ~Escapable {
    /// A place for an output.
    struct Place {
      let start: UnsafeMutableRawPointer
      let shape: [Int]
      let strides: [Int]
      let type: NDArray.ScalarType
    }

    private(set) var places: [String: Place] = [:]

    @_lifetime(immortal)
    public init() {}

    @_lifetime(self: copy self, &value)
    public mutating func insert(_ value: inout NDArray, for name: String) {
      let (shape, strides, type) = (value.shape, value.strides, value.scalarType)
      places[name] = value.mutableRawView().withUnsafeMutableBytes { start, _, _ in
        Place(start: start, shape: shape, strides: strides, type: type)
      }
    }
  }

  /// https://developer.apple.com/documentation/coreai/inferencefunction/outputs
  public struct Outputs: ~Copyable {
    private var arrays: [String: NDArray]

    init(_ arrays: [String: NDArray]) { self.arrays = arrays }

    public mutating func remove(_ outputName: String) -> InferenceValue? {
      guard let array = arrays.removeValue(forKey: outputName) else { return nil }
      return InferenceValue(array)
    }
  }

  /// Outputs with a view are written there and are not returned.
  public func run(
    inputs: [String: NDArray], states: consuming MutableViews = MutableViews(),
    outputViews: consuming MutableViews = MutableViews()
  ) async throws -> Outputs {
    let values = try await program.body(inputs)
    var returned: [String: NDArray] = [:]
    for (name, numbers) in values {
      if let place = outputViews.places[name] {
        write(numbers, at: place)
      } else if case .ndArray(let descriptor)? = descriptor.outputDescriptor(of: name) {
        // What is returned is contiguous, whatever is preferred.
        var array = NDArray(shape: descriptor.shape, scalarType: descriptor.scalarType)
        let (shape, strides, type) = (array.shape, array.strides, array.scalarType)
        array.mutableRawView().withUnsafeMutableBytes { start, _, _ in
          write(
            numbers, at: MutableViews.Place(start: start, shape: shape, strides: strides, type: type))
        }
        returned[name] = array
      }
    }
    return Outputs(returned)
  }

  /// Number by number, and by arithmetic of its own, so that it does not share the adapters' mistakes.
  private func write(_ numbers: [Float], at place: MutableViews.Place) {
    for (index, number) in numbers.enumerated() {
      var (rest, offset) = (index, 0)
      for axis in place.shape.indices.reversed() {
        offset += rest % place.shape[axis] * place.strides[axis]
        rest /= place.shape[axis]
      }
      let start = place.start + offset * place.type.size
      switch place.type {
      case .float32: start.storeBytes(of: number, as: Float.self)
      case .int32: start.storeBytes(of: Int32(number), as: Int32.self)
      case .float16: start.storeBytes(of: halfBits(number), as: UInt16.self)
      case .bfloat16: start.storeBytes(of: UInt16(number.bitPattern >> 16), as: UInt16.self)
      }
    }
  }
}

private func halfBits(_ number: Float) -> UInt16 {
  #if (os(macOS) || targetEnvironment(macCatalyst)) && arch(x86_64)
    preconditionFailure("half precision is missing on this machine")
  #else
    Float16(number).bitPattern
  #endif
}

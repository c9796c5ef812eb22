// Arrays of Core AI, as the adapters use them; see CoreAIShim.swift.

/// https://developer.apple.com/documentation/coreai/ndarray
public struct NDArray: Sendable {
  /// https://developer.apple.com/documentation/coreai/ndarray/scalartype
  public enum ScalarType: CaseIterable, Hashable, Sendable {
    case float16, float32, int32, bfloat16

    var size: Int { self == .float16 || self == .bfloat16 ? 2 : 4 }
  }

  /// https://developer.apple.com/documentation/coreai/ndarray/interleavelayout
  public struct InterleaveLayout: Equatable, Sendable {
    public let dimension: Int
    public let factor: Int

    public init(dimension: Int, factor: Int) { (self.dimension, self.factor) = (dimension, factor) }
  }

  public let shape: [Int]
  public let scalarType: ScalarType
  public let strides: [Int]
  public let interleaveLayout: InterleaveLayout?
  private var bytes: [UInt8]

  /// Contiguous.
  public init(shape: [Int], scalarType: ScalarType) {
    self.init(descriptor: NDArrayDescriptor(shape: shape, scalarType: scalarType))
  }

  /// In the preferred strides. Nothing promises zeros, so there are none.
  public init(descriptor: consuming NDArrayDescriptor) {
    shape = descriptor.shape
    scalarType = descriptor.scalarType
    strides = descriptor.preferredStrides
    interleaveLayout = descriptor.interleaveLayout
    // One more than needed, so that there is an address even of nothing.
    bytes = [UInt8](repeating: 0xA5, count: descriptor.minimumByteCount + 1)
  }

  /// https://developer.apple.com/documentation/coreai/ndarray/rawview()
  @_lifetime(borrow self)
  public func rawView() -> RawView { RawView(self) }

  /// https://developer.apple.com/documentation/coreai/ndarray/mutablerawview()
  @_lifetime(&self)
  public mutating func mutableRawView() -> MutableRawView { MutableRawView(&self) }

  /// https://developer.apple.com/documentation/coreai/ndarray/rawview
  public struct RawView: ~Copyable, ~Escapable {
    private let start: UnsafeRawPointer?
    private let shape: [Int]
    private let strides: [Int]

    @_lifetime(borrow array)
    init(_ array: borrowing NDArray) {
      start = array.bytes.withUnsafeBytes { $0.baseAddress }
      (shape, strides) = (array.shape, array.strides)
    }

    public func withUnsafeBytes<R, E: Error>(
      _ body: (UnsafeRawPointer, Span<Int>, Span<Int>) throws(E) -> R
    ) throws(E) -> R {
      guard let start else { preconditionFailure("an array without an address") }
      return try body(start, shape.span, strides.span)
    }
  }

  /// https://developer.apple.com/documentation/coreai/ndarray/mutablerawview
  public struct MutableRawView: ~Copyable, ~Escapable {
    private let start: UnsafeMutableRawPointer?
    private let shape: [Int]
    private let strides: [Int]

    /// An array in several hands is copied here, as every array of Swift is before it is written.
    @_lifetime(&array)
    init(_ array: inout NDArray) {
      start = array.bytes.withUnsafeMutableBytes { $0.baseAddress }
      (shape, strides) = (array.shape, array.strides)
    }

    public func withUnsafeMutableBytes<R, E: Error>(
      _ body: (UnsafeMutableRawPointer, Span<Int>, Span<Int>) throws(E) -> R
    ) throws(E) -> R {
      guard let start else { preconditionFailure("an array without an address") }
      return try body(start, shape.span, strides.span)
    }
  }

  /// Only in the shim: where the numbers lie, to see whether an array is the one that it was before.
  public var address: Int { bytes.withUnsafeBytes { Int(bitPattern: $0.baseAddress) } }
}

/// https://developer.apple.com/documentation/coreai/ndarraydescriptor
public struct NDArrayDescriptor: Sendable {
  public let shape: [Int]
  public let scalarType: NDArray.ScalarType
  public let preferredStrides: [Int]
  public let interleaveLayout: NDArray.InterleaveLayout?

  /// Only in the shim: `padding` numbers after each row.
  public init(
    shape: [Int], scalarType: NDArray.ScalarType, padding: Int = 0,
    interleaveLayout: NDArray.InterleaveLayout? = nil
  ) {
    var stride = 1
    var strides: [Int] = []
    for (axis, length) in shape.enumerated().reversed() {
      strides.insert(stride, at: 0)
      stride *= length + (axis == shape.count - 1 ? padding : 0)
    }
    (self.shape, self.scalarType, preferredStrides) = (shape, scalarType, strides)
    self.interleaveLayout = interleaveLayout
  }

  public var minimumByteCount: Int {
    guard !shape.contains(0) else { return 0 }
    return scalarType.size * (zip(shape, preferredStrides).reduce(0) { $0 + ($1.0 - 1) * $1.1 } + 1)
  }
}

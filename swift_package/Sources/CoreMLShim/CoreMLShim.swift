// The declarations of Core ML that the adapters use, so that the adapters compile and their plumbing
// can be tested without Core ML. A pass proves consistency with these declarations alone; none of it
// was run on a Mac. Each declaration follows the page of Apple's documentation beside it.

import Foundation

/// https://developer.apple.com/documentation/coreml/mlmultiarraydatatype
public enum MLMultiArrayDataType: Int {
  case double = 65600
  case float32 = 65568
  case float16 = 65552
  case int32 = 131104
  /// Since iOS 26 and macOS 26.
  case int8 = 131080
}

/// https://developer.apple.com/documentation/coreml/mlcomputeunits
public enum MLComputeUnits: Int {
  case cpuOnly = 0
  case cpuAndGPU = 1
  case all = 2
  case cpuAndNeuralEngine = 3
}

/// https://developer.apple.com/documentation/coreml/mlmodelconfiguration
public final class MLModelConfiguration {
  public var computeUnits = MLComputeUnits.all
  /// https://developer.apple.com/documentation/coreml/mlmodelconfiguration/functionname
  public var functionName: String?
  /// https://developer.apple.com/documentation/coreml/mlmodelconfiguration/optimizationhints
  public var optimizationHints = MLOptimizationHints()

  public init() {}
}

/// https://developer.apple.com/documentation/coreml/mlmultiarray
public final class MLMultiArray {
  public let shape: [NSNumber]
  public let dataType: MLMultiArrayDataType
  public let strides: [NSNumber]
  private var bytes: [UInt8]

  public convenience init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws {
    self.init(shape: shape, dataType: dataType, padding: 0)
  }

  /// Only in the shim: padded rows, which Core ML's own outputs may have.
  public init(shape: [NSNumber], dataType: MLMultiArrayDataType, padding: Int) {
    self.shape = shape
    self.dataType = dataType
    var stride = 1
    var strides: [NSNumber] = []
    for (axis, length) in shape.enumerated().reversed() {
      strides.insert(NSNumber(value: stride), at: 0)
      stride *= length.intValue + (axis == shape.count - 1 ? padding : 0)
    }
    self.strides = strides
    let size = Int(dataType.rawValue & 0xFF) / 8
    bytes = [UInt8](repeating: 0xA5, count: stride * size)
  }

  /// https://developer.apple.com/documentation/coreml/mlmultiarray/withunsafebytes(_:)
  public func withUnsafeBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
    try bytes.withUnsafeBytes(body)
  }

  /// https://developer.apple.com/documentation/coreml/mlmultiarray/withunsafemutablebytes(_:)
  public func withUnsafeMutableBytes<R>(
    _ body: (UnsafeMutableRawBufferPointer, [Int]) throws -> R
  ) rethrows -> R {
    let strides = strides.map(\.intValue)
    return try bytes.withUnsafeMutableBytes { try body($0, strides) }
  }
}

/// https://developer.apple.com/documentation/coreml/mlfeaturevalue
public final class MLFeatureValue {
  public let multiArrayValue: MLMultiArray?

  public init(multiArray: MLMultiArray) { multiArrayValue = multiArray }
}

/// https://developer.apple.com/documentation/coreml/mlfeatureprovider
public protocol MLFeatureProvider {
  var featureNames: Set<String> { get }
  func featureValue(for featureName: String) -> MLFeatureValue?
}

/// https://developer.apple.com/documentation/coreml/mldictionaryfeatureprovider
public final class MLDictionaryFeatureProvider: MLFeatureProvider {
  private let values: [String: MLFeatureValue]

  public init(dictionary: [String: Any]) throws {
    values = dictionary.compactMapValues { $0 as? MLFeatureValue }
  }

  public var featureNames: Set<String> { Set(values.keys) }

  public func featureValue(for featureName: String) -> MLFeatureValue? { values[featureName] }
}

/// https://developer.apple.com/documentation/coreml/mlpredictionoptions
public final class MLPredictionOptions {
  public var outputBackings: [String: Any] = [:]

  public init() {}
}

/// https://developer.apple.com/documentation/coreml/mlmodel
public final class MLModel {
  /// Only in the shim: a fake model's computation, from inputs and the buffers offered for outputs.
  public typealias Body = ([String: MLMultiArray], [String: Any]) throws -> [String: MLMultiArray]
  private let body: Body

  /// Only in the shim.
  public init(body: @escaping Body) { self.body = body }

  public convenience init(contentsOf url: URL, configuration: MLModelConfiguration) throws {
    throw CocoaError(.featureUnsupported)
  }

  public static func compileModel(at modelURL: URL) async throws -> URL {
    throw CocoaError(.featureUnsupported)
  }

  public func prediction(
    from input: any MLFeatureProvider, options: MLPredictionOptions
  ) throws -> any MLFeatureProvider {
    var inputs: [String: MLMultiArray] = [:]
    for name in input.featureNames { inputs[name] = input.featureValue(for: name)?.multiArrayValue }
    let outputs = try body(inputs, options.outputBackings)
    return try MLDictionaryFeatureProvider(
      dictionary: outputs.mapValues { MLFeatureValue(multiArray: $0) })
  }
}

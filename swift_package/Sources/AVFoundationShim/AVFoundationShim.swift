// The declarations of AVFoundation that the writer of movies uses, so that it compiles and can be tested
// without AVFoundation. A pass proves consistency with these declarations alone; none of it was run on a
// Mac. Each declaration follows the page of Apple's documentation beside it.

import Foundation

/// https://developer.apple.com/documentation/avfoundation/avfiletype
public struct AVFileType: Equatable, Sendable {
  /// https://developer.apple.com/documentation/avfoundation/avfiletype/mp4
  public static let mp4 = AVFileType(name: "public.mpeg-4")
  let name: String
}

/// https://developer.apple.com/documentation/avfoundation/avmediatype
public struct AVMediaType: Equatable, Sendable {
  /// https://developer.apple.com/documentation/avfoundation/avmediatype/video
  public static let video = AVMediaType(name: "vide")
  let name: String
}

/// https://developer.apple.com/documentation/avfoundation/avvideocodectype
public struct AVVideoCodecType: Equatable, Sendable {
  /// https://developer.apple.com/documentation/avfoundation/avvideocodectype/h264
  public static let h264 = AVVideoCodecType(name: "avc1")
  let name: String
}

/// https://developer.apple.com/documentation/avfoundation/avvideocodeckey
public let AVVideoCodecKey = "AVVideoCodecKey"
/// https://developer.apple.com/documentation/avfoundation/avvideowidthkey
public let AVVideoWidthKey = "AVVideoWidthKey"
/// https://developer.apple.com/documentation/avfoundation/avvideoheightkey
public let AVVideoHeightKey = "AVVideoHeightKey"
/// https://developer.apple.com/documentation/avfoundation/avvideocolorpropertieskey
public let AVVideoColorPropertiesKey = "AVVideoColorPropertiesKey"
/// https://developer.apple.com/documentation/avfoundation/avvideocolorprimarieskey
public let AVVideoColorPrimariesKey = "ColorPrimaries"
/// https://developer.apple.com/documentation/avfoundation/avvideocolorprimaries_itu_r_709_2
public let AVVideoColorPrimaries_ITU_R_709_2 = "ITU_R_709_2"
/// https://developer.apple.com/documentation/avfoundation/avvideotransferfunctionkey
public let AVVideoTransferFunctionKey = "TransferFunction"
/// https://developer.apple.com/documentation/avfoundation/avvideotransferfunction_itu_r_709_2
public let AVVideoTransferFunction_ITU_R_709_2 = "ITU_R_709_2"
/// https://developer.apple.com/documentation/avfoundation/avvideoycbcrmatrixkey
public let AVVideoYCbCrMatrixKey = "YCbCrMatrix"
/// https://developer.apple.com/documentation/avfoundation/avvideoycbcrmatrix_itu_r_709_2
public let AVVideoYCbCrMatrix_ITU_R_709_2 = "ITU_R_709_2"

/// https://developer.apple.com/documentation/avfoundation/avassetwriter
public final class AVAssetWriter {
  /// https://developer.apple.com/documentation/avfoundation/avassetwriter/status-swift.enum
  public enum Status: Int {
    case unknown, writing, completed, failed, cancelled
  }

  private let url: URL
  private var input: AVAssetWriterInput?
  private var start: CMTime?
  private var end: CMTime?
  /// https://developer.apple.com/documentation/avfoundation/avassetwriter/status-swift.property
  public private(set) var status = Status.unknown
  /// https://developer.apple.com/documentation/avfoundation/avassetwriter/error
  public private(set) var error: (any Error)?

  public init(outputURL: URL, fileType: AVFileType) throws {
    url = outputURL
    guard !FileManager.default.fileExists(atPath: outputURL.path) else {
      throw CocoaError(.fileWriteFileExists)
    }
  }

  public func canAdd(_ input: AVAssetWriterInput) -> Bool { self.input == nil && status == .unknown }

  public func add(_ input: AVAssetWriterInput) { self.input = input }

  public func startWriting() -> Bool {
    guard let input, status == .unknown else { return false }
    // Only in the shim: encoders of H.264 take even sides alone.
    let sides = [AVVideoWidthKey, AVVideoHeightKey].compactMap { input.settings[$0] as? Int }
    guard sides.count == 2, sides.allSatisfy({ $0 % 2 == 0 }) else {
      (status, error) = (.failed, CocoaError(.featureUnsupported))
      return false
    }
    status = .writing
    input.isReady = true
    return true
  }

  public func startSession(atSourceTime startTime: CMTime) { start = startTime }

  public func endSession(atSourceTime endTime: CMTime) { end = endTime }

  /// https://developer.apple.com/documentation/avfoundation/avassetwriter/finishwriting(completionhandler:)
  ///
  /// Only in the shim: the file holds a line of text, then the bytes of all frames.
  public func finishWriting(completionHandler handler: @escaping @Sendable () -> Void) {
    if let input, input.isFinished, let start, let end, status == .writing {
      let times = ([start] + input.samples.map(\.time) + [end]).map { "\($0.value)/\($0.timescale)" }
      let size = "\(input.settings[AVVideoWidthKey] ?? 0) \(input.settings[AVVideoHeightKey] ?? 0)"
      let text = "\(size) \(times.joined(separator: " "))\n"
      do {
        try (Data(text.utf8) + Data(input.samples.flatMap(\.bytes))).write(to: url)
        status = .completed
      } catch {
        (status, self.error) = (.failed, error)
      }
    } else {
      status = .failed
    }
    handler()
  }
}

/// https://developer.apple.com/documentation/avfoundation/avassetwriterinput
public final class AVAssetWriterInput {
  let settings: [String: Any]
  var isReady = false
  var isFinished = false
  var samples: [(bytes: [UInt8], time: CMTime)] = []
  private var questions = 0

  public init(mediaType: AVMediaType, outputSettings: [String: Any]?) { settings = outputSettings ?? [:] }

  public var expectsMediaDataInRealTime = false

  /// Only in the shim: every third question is answered with no.
  public var isReadyForMoreMediaData: Bool {
    questions += 1
    return isReady && questions % 3 != 0
  }

  public func markAsFinished() { isFinished = true }
}

/// https://developer.apple.com/documentation/avfoundation/avassetwriterinputpixelbufferadaptor
public final class AVAssetWriterInputPixelBufferAdaptor {
  private let input: AVAssetWriterInput
  private let attributes: [String: Any]

  public init(assetWriterInput input: AVAssetWriterInput, sourcePixelBufferAttributes: [String: Any]?) {
    (self.input, attributes) = (input, sourcePixelBufferAttributes ?? [:])
  }

  /// nil until writing has started.
  public var pixelBufferPool: CVPixelBufferPool? {
    guard input.isReady, let width = attributes[kCVPixelBufferWidthKey] as? Int,
      let height = attributes[kCVPixelBufferHeightKey] as? Int,
      attributes[kCVPixelBufferPixelFormatTypeKey] as? Int == Int(kCVPixelFormatType_32BGRA)
    else { return nil }
    return CVPixelBufferPool(width: width, height: height)
  }

  /// Times must grow.
  public func append(_ buffer: CVPixelBuffer, withPresentationTime time: CMTime) -> Bool {
    guard input.isReady, !input.isFinished, !buffer.isLocked else { return false }
    guard input.samples.last.map({ $0.time.value < time.value }) ?? true else { return false }
    input.samples.append((buffer.visible, time))
    return true
  }
}

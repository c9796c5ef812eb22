// Core Video's and Core Media's declarations; see AVFoundationShim.swift.

/// https://developer.apple.com/documentation/coremedia/cmtimevalue
public typealias CMTimeValue = Int64
/// https://developer.apple.com/documentation/coremedia/cmtimescale
public typealias CMTimeScale = Int32

/// https://developer.apple.com/documentation/coremedia/cmtime
public struct CMTime: Sendable {
  public var value: CMTimeValue
  public var timescale: CMTimeScale

  public init(value: CMTimeValue, timescale: CMTimeScale) { (self.value, self.timescale) = (value, timescale) }
}

/// https://developer.apple.com/documentation/corevideo/cvreturn
public typealias CVReturn = Int32
/// https://developer.apple.com/documentation/corevideo/kcvreturnsuccess
public let kCVReturnSuccess: CVReturn = 0
/// https://developer.apple.com/documentation/corevideo/kcvpixelformattype_32bgra
public let kCVPixelFormatType_32BGRA: UInt32 = 0x4247_5241
/// https://developer.apple.com/documentation/corevideo/kcvpixelbufferpixelformattypekey
public let kCVPixelBufferPixelFormatTypeKey = "PixelFormatType"
/// https://developer.apple.com/documentation/corevideo/kcvpixelbufferwidthkey
public let kCVPixelBufferWidthKey = "Width"
/// https://developer.apple.com/documentation/corevideo/kcvpixelbufferheightkey
public let kCVPixelBufferHeightKey = "Height"

/// https://developer.apple.com/documentation/corefoundation/cfallocator
public final class CFAllocator {}

/// https://developer.apple.com/documentation/corevideo/cvpixelbufferlockflags
public struct CVPixelBufferLockFlags: OptionSet, Sendable {
  public let rawValue: UInt64

  public init(rawValue: UInt64) { self.rawValue = rawValue }
}

/// https://developer.apple.com/documentation/corevideo/cvpixelbuffer
public final class CVPixelBuffer {
  let height: Int
  let stride: Int
  private let width: Int
  private let bytes: UnsafeMutableRawBufferPointer
  var isLocked = false

  /// Only in the shim: rows end in bytes that are not shown, which real ones may have.
  init(width: Int, height: Int) {
    (self.width, self.height, stride) = (width, height, 4 * width + 16)
    bytes = .allocate(byteCount: stride * height, alignment: 16)
  }

  deinit { bytes.deallocate() }

  var base: UnsafeMutableRawPointer? { isLocked ? bytes.baseAddress : nil }

  /// Only in the shim: the rows without their ends.
  var visible: [UInt8] {
    (0..<height).flatMap { row in Array(bytes[row * stride..<row * stride + 4 * width]) }
  }
}

/// https://developer.apple.com/documentation/corevideo/cvpixelbufferpool
public final class CVPixelBufferPool {
  let width: Int
  let height: Int

  init(width: Int, height: Int) { (self.width, self.height) = (width, height) }
}

/// https://developer.apple.com/documentation/corevideo/cvpixelbufferpoolcreatepixelbuffer(_:_:_:)
public func CVPixelBufferPoolCreatePixelBuffer(
  _ allocator: CFAllocator?, _ pool: CVPixelBufferPool, _ buffer: UnsafeMutablePointer<CVPixelBuffer?>
) -> CVReturn {
  buffer.pointee = CVPixelBuffer(width: pool.width, height: pool.height)
  return kCVReturnSuccess
}

/// https://developer.apple.com/documentation/corevideo/cvpixelbufferlockbaseaddress(_:_:)
@discardableResult
public func CVPixelBufferLockBaseAddress(_ buffer: CVPixelBuffer, _ flags: CVPixelBufferLockFlags) -> CVReturn {
  buffer.isLocked = true
  return kCVReturnSuccess
}

/// https://developer.apple.com/documentation/corevideo/cvpixelbufferunlockbaseaddress(_:_:)
@discardableResult
public func CVPixelBufferUnlockBaseAddress(
  _ buffer: CVPixelBuffer, _ flags: CVPixelBufferLockFlags
) -> CVReturn {
  buffer.isLocked = false
  return kCVReturnSuccess
}

/// https://developer.apple.com/documentation/corevideo/cvpixelbuffergetbaseaddress(_:)
public func CVPixelBufferGetBaseAddress(_ buffer: CVPixelBuffer) -> UnsafeMutableRawPointer? { buffer.base }

/// https://developer.apple.com/documentation/corevideo/cvpixelbuffergetbytesperrow(_:)
public func CVPixelBufferGetBytesPerRow(_ buffer: CVPixelBuffer) -> Int { buffer.stride }

/// https://developer.apple.com/documentation/corevideo/cvpixelbuffergetheight(_:)
public func CVPixelBufferGetHeight(_ buffer: CVPixelBuffer) -> Int { buffer.height }
